"""Every parameter of the pipeline: one frozen, validated class per section of ``params.yaml``.

Unknown keys and impossible combinations are errors when the file is read, so that a typing mistake
costs a second and not a training run. Configuration is passed in; nothing here is global.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vall_e.decoding import SamplingConfig
from vall_e.family import KINDS, ModelConfig
from vall_e.fields import PositiveFloat, PositiveInt, Section
from vall_e.preparation import (
    CardConfig,
    CodecConfig,
    EncodeConfig,
    ExecutorConfig,
    IngestConfig,
    PhonemizeConfig,
    QualityConfig,
    RecogniserConfig,
    SimilarConfig,
    SplitConfig,
    TranscribeConfig,
)
from vall_e.regimen import TrainConfig
from vall_e.registry import RegistryConfig
from vall_e.tasks import TASKS

COMPILED = ("llama", "mixtral", "retnet", "transformer")  # backbones that train.compile is tested with


class ConfigError(ValueError):
    """A parameter is unknown, of the wrong type, or in conflict with another one."""


class EvaluateConfig(Section):
    utterances: PositiveInt = 96
    joined: bool = Field(True, description="with train.join: test on new strings of joined clips, not on recordings")
    recogniser: RecogniserConfig = RecogniserConfig(max_new_tokens=48)
    testset: str | None = Field(
        None, description="a list of texts and prompts in Seed-TTS's or LibriSpeech's format, in place of the corpus'"
    )
    normaliser: Literal["spoken", "whisper", "none"] = Field("spoken", description="of texts that error rates compare")
    spellings: str | None = Field(None, description="normaliser whisper: normalizer.json of a Whisper tokenizer")
    asr_prompt: str | None = None
    prompt_seconds: tuple[PositiveFloat, PositiveFloat] = (1.5, 3.0)
    batch_size: PositiveInt = 16
    bootstrap: PositiveInt = 1000
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        if self.spellings is not None and self.normaliser != "whisper":
            raise ValueError("evaluate.spellings is read by evaluate.normaliser: whisper only; set that, or null")
        return self


class ScoreConfig(Section):
    speaker_encoder: Literal["resemblyzer", "wavlm-sv", "ecapa"] = "resemblyzer"
    speaker_weights: str | None = Field(
        None, description="wavlm-sv, ecapa: a folder or a hub's name; null: the published ones"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="of the speaker encoder and UTMOS")
    dnsmos: bool = True
    utmos: str | None = Field(None, description="a TorchScript file of UTMOS (docs/evaluation.md); null: not measured")
    dnsmos_utterances: PositiveInt = Field(
        48, description="test items whose three waves DNSMOS and UTMOS hear (DNSMOS: 0.3 s of one core each)"
    )
    acoustics: bool = Field(True, description="mel-cepstral distance, pitch and duration beside the recording")
    bootstrap: PositiveInt = 1000

    @model_validator(mode="after")
    def _consistent(self) -> ScoreConfig:
        if self.speaker_weights is not None and self.speaker_encoder == "resemblyzer":
            raise ValueError("score.speaker_weights: resemblyzer's are in its wheel; name another encoder, or null")
        return self


class ReportConfig(Section):
    title: str = "Voice model report"
    examples: PositiveInt = 12


class TrackingConfig(Section):
    uri: str | None = Field(None, description="MLflow tracking URI; without it SQLite in ./mlflow.db")
    experiment: str = Field("vall-e", description="of models; the data stages' runs are in EXPERIMENT-data")
    system_seconds: PositiveFloat | None = Field(
        10.0, description="between two samples of the machine's load (CPU, memory, disk, network, GPU); null: none"
    )


class Params(Section):
    """The whole of ``params.yaml``."""

    profile: str = "demo"
    executor: ExecutorConfig = ExecutorConfig()
    ingest: IngestConfig = IngestConfig()
    transcribe: TranscribeConfig = TranscribeConfig()
    quality: QualityConfig = QualityConfig()
    split: SplitConfig = SplitConfig()
    phonemize: PhonemizeConfig = PhonemizeConfig()
    codec: CodecConfig = CodecConfig()
    encode: EncodeConfig = EncodeConfig()
    similar: SimilarConfig = SimilarConfig()
    card: CardConfig = CardConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    score: ScoreConfig = ScoreConfig()
    report: ReportConfig = ReportConfig()
    registry: RegistryConfig = RegistryConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if self.model.lora is not None and self.train.init_from is None:
            raise ValueError("model.lora trains adapters on a frozen model: name that voice with train.init_from")
        if self.model.alignment and self.train.alignment_weight == 0:
            raise ValueError(
                "train.alignment_weight 0 leaves the alignment head untrained, and it ranks candidates: "
                "set model.alignment: false as well"
            )
        if self.model.attention == "sageattention":
            raise ValueError("model.attention sageattention has no gradients: train with another backend")
        self._levels_fit()
        if self.train.compile is True and self.model.backbone not in COMPILED:
            raise ValueError(
                f"train.compile: the blocks of {self.model.backbone} have not been shown to train alike when compiled: "
                f"take {', '.join(COMPILED)} or leave it off"
            )
        if self.train.layerskip is not None and not self.model.capabilities.early_exit:
            raise ValueError(f"train.layerskip: backbone {self.model.backbone} has no early exits")
        if self.train.layerskip is not None and self.model.layers < 2:
            raise ValueError("train.layerskip needs model.layers of 2 or more")
        speaks = KINDS[self.model.kind].modes != ("level",) and "tts" in self.model.tasks
        if self.train.samples is not None and not speaks:
            raise ValueError(
                f"train.samples: a model of kind {self.model.kind} with the tasks {', '.join(self.model.tasks)} cannot "
                "read a text aloud by itself: set train.samples to null"
            )
        mixed = self.encode.mixtures
        there = {"noise": mixed and mixed.noise, "overlap": mixed and mixed.overlap_db}
        for task in self.model.tasks:
            if (kind := TASKS[task].mixture) is not None and there[kind] is None:
                key = {"noise": "noise (a folder of recordings)", "overlap": "overlap_db"}[kind]
                raise ValueError(f"model.tasks: {task} is learned from mixtures: set encode.mixtures.{key}")
        return self

    def _levels_fit(self) -> None:
        """Raises ValueError where the kind of the model has no use for what is said of its levels."""
        kind, modes, drawn = self.model.kind, KINDS[self.model.kind].modes, False
        for _, train, stage in self.train.phases:
            one = train.level_loss == "one"
            if one and kind not in ("v2-ar", "v2-nar"):
                raise ValueError(f"train.level_loss one is for v2-ar and v2-nar, not for {kind}")
            draws = "level" in modes or one or (kind == "v2-nar" and train.mask_levels != "all")
            if stage is not None and stage.level_weights is not None and not draws:
                raise ValueError(f"train.stages until {stage.until}: level_weights, and no level is drawn")
            if train.token_dropout is not None and "level" not in modes:
                raise ValueError(f"train.token_dropout is for level passes, and kind {kind} has none")
            drawn = drawn or draws
        if self.model.level_weights is not None and not drawn:
            raise ValueError("model.level_weights: no level is drawn, unless train.level_loss is one")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` → ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the leaves of ``override`` put over it; neither is modified."""
    out = dict(base)
    for key, value in override.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


_REASONS = {"extra_forbidden": "unknown key", "string_type": "is a text: put it in quotes"}


def parse_params(raw: dict[str, Any], source: str = "params") -> Params:
    """Validate a plain dictionary. Raises ConfigError naming the source, the key and the reason."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or "(whole file)"
            reason = _REASONS.get(item["type"], item["msg"].removeprefix("Value error, "))
            value = "" if isinstance(item["input"], (dict, BaseModel)) else f" (got {item['input']!r})"
            lines.append(f"  {where}: {reason}{value}")
        raise ConfigError(f"{source} is not valid:\n" + "\n".join(lines)) from None


def parse_yaml(text: str) -> Any:
    """What ``text`` says in YAML 1.2, which is what DVC reads: ``off`` and ``no`` are words, ``1e3`` is a number.

    Raises:
        YAMLError: it is not YAML, or names a key twice.
    """
    return YAML(typ="safe").load(text)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises ConfigError naming the file for anything else."""
    path = Path(path)
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (run from the project's folder, or name one with --params)") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections with keys, found {type(raw).__name__}")
    return raw


def load_params(path: str | Path = "params.yaml", *overrides: str | Path) -> Params:
    """``params.yaml`` with the profiles ``overrides`` put over it, validated."""
    raw = read_yaml(path)
    for override in overrides:
        raw = merge(raw, read_yaml(override))
    return parse_params(raw, " + ".join(str(p) for p in (path, *overrides)))
