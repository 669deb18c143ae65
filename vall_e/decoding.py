"""How codes are drawn when a voice speaks: the section ``sampling`` of ``params.yaml`` and of a voice.

``sampling.ar`` holds for the autoregressive pass, ``sampling.nar`` for the passes that add levels, ``sampling.demask``
for kinds with masks. All neutral values are the identity. What each sampler does is in ``vall_e.sampling``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from vall_e.fields import Fraction, PositiveFloat, PositiveInt, Section

Weights = Literal["float32", "bfloat16", "float16", "int8"]  # formats that a model may be kept in for inference
AHEAD = 32  # frames whose noise a row draws at once: drafts, and the frame behind them, have to fit
FORMATS: tuple[Weights, ...] = get_args(Weights)

NotNegative = Annotated[float, Field(ge=0.0)]
Pause = Annotated[float, Field(ge=0.0, le=10.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class SettingError(ValueError):
    """A setting that there is not, or that cannot have its value.

    Attributes:
        key: as in ``SamplingConfig.with_``; empty where settings conflict.
        value: that it was given.
        reason: why not.
    """

    def __init__(self, key: str, value: Any, reason: str) -> None:
        super().__init__(f"sampling.{key} {value!r}: {reason}" if key else reason)
        self.key, self.value, self.reason = key, value, reason


class FilterParams(Section):
    """Samplers that look at one distribution only: temperature, then filters."""

    temperature: NotNegative = Field(0.8, description="randomness of the codes; 0 always takes the likeliest")
    min_temperature: NotNegative | None = Field(
        None, description="temperature where the model is sure, falling to it from temperature; null: the same anywhere"
    )
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="draw from the k likeliest codes; 0 from all")
    top_p: Share = Field(1.0, description="draw from the likeliest codes that together have this probability")
    min_p: Fraction = Field(0.0, description="drop codes below this share of the likeliest one's probability")
    top_n_sigma: NotNegative = Field(
        0.0, description="drop codes more than so many standard deviations below the greatest logit; 0 drops none"
    )
    banned: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="codes that are never drawn")

    @property
    def filters(self) -> dict[str, Any]:
        """Arguments of ``vall_e.sampling.chain.warp``."""
        return {name: getattr(self, name) for name in FilterParams.model_fields}

    @model_validator(mode="after")
    def _dynamic(self) -> FilterParams:
        if self.min_temperature is not None and not self.min_temperature <= self.temperature > 0:
            raise ValueError(
                f"min_temperature {self.min_temperature:g} is not below temperature {self.temperature:g}: the first is "
                "where the model is sure, the second where it is not"
            )
        return self


class LevelParams(FilterParams):
    """Samplers of passes that draw all frames at once, greedy by default."""

    temperature: NotNegative = Field(0.0, description="randomness of the codes; 0 always takes the likeliest")


class SamplingParams(FilterParams):
    """Samplers of a pass that draws one code after the other: those that remember what they drew as well."""

    repetition_penalty: PositiveFloat = Field(
        1.0,
        description="above 1 makes codes of the last frames less likely: logits above the mean are divided by it, "
        "those below multiplied",
    )
    repetition_window: Annotated[int, Field(gt=0, le=10_000)] = Field(
        75, description="frames that repetition and dry penalties look back"
    )
    repetition_decay: Fraction = Field(
        0.0, description="share of the repetition penalty that is gone with each frame of distance"
    )
    repetition_each: bool = Field(False, description="the repetition penalty counts at each occurrence, not once")
    length_penalty: float = Field(
        0.0, description="taken from the stop symbol's logit for each frame: above 0 makes speech longer, below shorter"
    )
    dry_multiplier: NotNegative = Field(0.0, description="penalty on going on with a repeated sequence (DRY); 0 is off")
    dry_base: Annotated[float, Field(ge=1.0)] = Field(1.75, description="growth of it with each frame of the sequence")
    dry_allowed: PositiveInt = Field(2, description="length of sequences that may be repeated before it begins")
    mirostat: Literal[0, 1, 2] = Field(0, description="keep the surprise constant, by version 1 or 2; 0 is off")
    mirostat_tau: PositiveFloat = Field(5.0, description="that surprise, in bits")
    mirostat_eta: PositiveFloat = Field(0.1, description="how fast mirostat learns")
    entropix: bool = Field(False, description="temperature and filters from how sure the model is (logits, attention)")
    entropix_entropy: PositiveFloat = Field(2.0, description="nats above which the entropy of the logits is high")
    entropix_varentropy: PositiveFloat = Field(
        2.0, description="nats^2 above which the variance of the surprise is high"
    )

    @property
    def remembers(self) -> bool:
        """Whether what is drawn depends on what was drawn before."""
        neutral = self.repetition_penalty == 1.0 and self.length_penalty == 0.0 and self.dry_multiplier == 0.0
        return not neutral or self.mirostat > 0

    @model_validator(mode="after")
    def _one_draw(self) -> SamplingParams:
        if self.mirostat and self.entropix:
            raise ValueError("mirostat and entropix each choose what to draw from: set mirostat 0 or entropix false")
        filtered = self.top_k or self.top_p < 1 or self.min_p or self.top_n_sigma or self.min_temperature is not None
        name = "mirostat" if self.mirostat else "entropix"
        if (self.mirostat or self.entropix) and (filtered or self.temperature == 0):
            raise ValueError(
                f"{name} chooses what to draw from: with it leave top_k 0, top_p 1, min_p 0, top_n_sigma 0, "
                "min_temperature null and temperature above 0"
            )
        return self


class DemaskConfig(Section):
    """How masked codes appear (kinds nar-len and v2-nar)."""

    steps: PositiveInt = Field(16, description="passes until nothing is masked")
    schedule: Literal["cosine", "linear", "square", "root"] = Field(
        "cosine",
        description="share still masked after a share r of the steps: cos(r pi / 2), 1 - r, 1 - r^2 or 1 - sqrt(r)",
    )
    temperature: NotNegative = Field(1.0, description="of what is drawn")
    anneal_temperature: Fraction = Field(1.0, description="share of the temperature that is gone at the last step")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="draw from the k likeliest codes; 0 from all")
    top_p: Share = Field(1.0, description="draw from the likeliest codes that together have this probability")
    guidance: NotNegative = Field(2.0, description="how much more the text counts; 0 is plain")
    anneal_guidance: Fraction = Field(0.0, description="share of the guidance that is gone at the last step")
    choice_temperature: NotNegative = Field(1.0, description="randomness of which predictions are kept, falling to 0")
    remask: bool = Field(False, description="kept codes may be masked again while they are among the least sure")
    order: Literal["auto", "level", "free", "frame"] = Field(
        "auto",
        description="v2-nar: level by level from the coarsest, all at once each on its own, or a frame's together; "
        "auto is level for a residual codec, free for one whose levels have no order",
    )
    later_steps: PositiveInt = Field(4, description="order level: steps of each level above 0")


class SpeculationConfig(Section):
    """Frames that something quick drafts and the whole model checks: the same speech, sooner.

    The first layers draft (2404.16710; they need train.layerskip to be of use), or a smaller voice (2211.17192).
    """

    exit_layer: PositiveInt | None = Field(None, description="how many layers draft; null: a smaller voice does")
    draft: Annotated[int, Field(gt=0, lt=AHEAD)] = Field(
        8, description="frames drafted at most; how many follows from what was accepted"
    )


class BeamConfig(Section):
    """Search for the likeliest utterance instead of drawing one."""

    width: PositiveInt = Field(4, description="hypotheses kept at each frame; 1 is greedy")
    length_penalty: NotNegative = Field(1.0, description="hypotheses are ranked by log-probability / length^this")


class LongTextConfig(Section):
    """How a text that takes several segments is spoken.

    Silent pauses in speech are brief (below 0.2 s), medium (up to 1 s) or long (Campione and Veronis 2002, on silent
    pauses in five languages); clauses, sentences and paragraphs get one of each kind.
    """

    context: Literal["none", "rolling"] = Field(
        "none", description="rolling: a segment goes on from the end of the one before; none: all at once, in a batch"
    )
    context_seconds: PositiveFloat = Field(1.5, description="rolling: how much of the segment before, at most")
    clause_pause: Pause = Field(0.18, description="seconds between segments after a comma")
    sentence_pause: Pause = Field(0.45, description="seconds after a sentence")
    paragraph_pause: Pause = Field(1.0, description="seconds after a paragraph")


class SamplingConfig(Section):
    """How codes are drawn."""

    ar: SamplingParams = Field(SamplingParams(), description="of the autoregressive pass")
    nar: LevelParams = Field(LevelParams(), description="of the passes that add levels")
    guidance: NotNegative = Field(1.0, description="how much more the text counts; 0 is plain decoding")
    guidance_rescale: Fraction = Field(
        0.0, description="share of guidance that keeps the spread of the logits (2305.08891); 0 is plain guidance"
    )
    candidates: PositiveInt = Field(3, description="utterances drawn for each text, of which the best is kept")
    first: Literal["auto", "ar", "mask"] = Field("auto", description="ar+nar-len: how level 0 is drawn; auto is ar")
    demask: DemaskConfig = Field(DemaskConfig(), description="of kinds with masks")
    rank: Literal["auto", "alignment", "stt", "recogniser"] = Field(
        "auto",
        description="what the best candidate is chosen by: alignment and gain through the text, the voice's own stt "
        "loss, or a recogniser's word errors; auto is alignment",
    )
    retries: Annotated[int, Field(ge=0, le=10)] = Field(
        1,
        description="times that a segment with a fault is drawn anew, the best is kept; none if all temperatures are 0",
    )
    max_seconds: PositiveFloat = Field(12.0, description="length cap of a segment")
    long_text: LongTextConfig = Field(LongTextConfig(), description="of texts that take several segments")
    speculation: SpeculationConfig | None = Field(None, description="layers that draft frames; null: none")
    beam: BeamConfig | None = Field(None, description="search instead of drawing; null: draw")
    seed: int = Field(0, description="of everything that is drawn")

    def with_(self, **changes: Any) -> Self:
        """These settings with some changed: ``sampling.with_(guidance=0.5, **{"ar.temperature": 0.2})``.

        Of a section, ``ar={"temperature": 0.2}`` does the same; one that was null has its defaults for the rest.

        Raises:
            SettingError: no such setting, or a value that cannot be.
        """
        settings = self.model_dump()
        for key, value in changes.items():
            section, _, name = key.rpartition(".")
            section, inner = (section, {name: value}) if section else (key, value)
            if not isinstance(inner, Mapping):
                _check_name(key, value)
                settings[key] = value
                continue
            for of, wanted in inner.items():
                _check_name(f"{section}.{of}", wanted)
            known = settings.get(section)
            settings[section] = (known if isinstance(known, dict) else {}) | dict(inner)
        try:
            return type(self)(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            key, reason = ".".join(map(str, first["loc"][:2])), first["msg"].removeprefix("Value error, ")
            raise SettingError("" if first["type"] == "value_error" else key, first["input"], reason) from None

    @model_validator(mode="after")
    def _consistent(self) -> SamplingConfig:
        plain = self.guidance == 0 and self.candidates == 1 and not self.ar.remembers and not self.ar.entropix
        if self.speculation is not None and not plain:
            raise ValueError(
                "sampling.speculation draws one candidate from the plain model, several frames at once: it needs "
                "guidance 0, candidates 1 and in sampling.ar repetition_penalty 1, length_penalty 0, dry_multiplier 0, "
                "mirostat 0 and entropix false"
            )
        if self.beam is not None and (self.speculation or self.candidates > 1 or self.ar.mirostat or self.ar.entropix):
            raise ValueError(
                "sampling.beam searches and draws nothing: it needs candidates 1, speculation null and in sampling.ar "
                "mirostat 0 and entropix false"
            )
        return self


def _check_name(key: str, value: Any) -> None:
    """Raises SettingError for a ``key`` that names no setting."""
    names = list(SamplingConfig.model_fields)
    for name, field in SamplingConfig.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                names += [f"{name}.{inner}" for inner in kind.model_fields]
    if key not in names:
        near = [name for name in names if name.endswith(f".{key}")] or difflib.get_close_matches(key, names, 1)
        raise SettingError(key, value, f"no such setting{f', is it {near[0]}?' if near else ''}")
