"""Every parameter of the pipeline: one frozen, validated class per section of ``params.yaml``.

Unknown keys and impossible combinations are errors when the file is read, so that a typing mistake
costs a second and not a training run. Configuration is passed in; nothing here is global.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from vall_e.decoding import SamplingConfig
from vall_e.family import KINDS, Levels, ModelConfig
from vall_e.fields import Fraction, PositiveFloat, PositiveInt, Section
from vall_e.preparation import (
    CodecConfig,
    EncodeConfig,
    IngestConfig,
    PhonemizeConfig,
    RecogniserConfig,
    SimilarConfig,
    TranscribeConfig,
)
from vall_e.tasks import TASKS


class ConfigError(ValueError):
    """A parameter is unknown, of the wrong type, or in conflict with another one."""


class JoinConfig(Section):
    """Make longer utterances in the loader by joining clips of one speaker (spoken digits, words)."""

    min_clips: PositiveInt = 2
    max_clips: PositiveInt = 5
    gap_seconds: tuple[float, float] = (0.0, 0.12)
    max_seconds: PositiveFloat | None = Field(None, description="no clip is added beyond this; null: no limit")
    curriculum_steps: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> JoinConfig:
        if self.min_clips > self.max_clips:
            raise ValueError("train.join.min_clips must not be above train.join.max_clips")
        if not 0.0 <= self.gap_seconds[0] <= self.gap_seconds[1]:
            raise ValueError("train.join.gap_seconds is a range [shortest, longest] of seconds")
        return self


class LayerSkipConfig(Section):
    """Training for early exits (2404.16710): rows skip layers, and exits have a loss of their own."""

    max_dropout: Fraction = Field(0.1, description="of the last layer; less before it, none in the first")
    exit_weight: Fraction = Field(0.2, description="scale of the losses of exits before the last layer")
    rotate: PositiveInt = Field(4, description="a step trains one exit in so many layers, the next step another one")


class TokenDropoutConfig(Section):
    """Level passes learn from a previous level that is not always right, as the drawn one is not."""

    rate: Fraction = Field(0.1, description="share of the previous level's codes")
    form: Literal["nudge", "mask"] = Field(
        "mask", description="the code beside it (of use where neighbours sound alike: FSQ), or the mask token"
    )


class TrainConfig(Section):
    max_steps: PositiveInt = 3000
    batch_frames: PositiveInt = Field(4000, description="positions in one batch, padding included")
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: PositiveFloat = Field(2e-3, description="AdamW's rate")
    muon_lr: PositiveFloat = Field(0.02, description="Muon's rate, for the matrices of the blocks")
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    schedule: Literal["hold", "cosine", "linear"] = "linear"
    grad_clip: PositiveFloat = 1.0
    accumulate: PositiveInt = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads; 0 leaves torch's choice")
    label_smoothing: Fraction = 0.05
    alignment_weight: Annotated[float, Field(ge=0.0)] = Field(
        0.3, description="weight of the loss by which frames learn where in the text they are"
    )
    text_dropout: Fraction = Field(0.1, description="rows trained without text, for guidance (2207.12598)")
    prompt_dropout: Fraction = 0.05
    language_dropout: Fraction = Field(0.1, description="with model.languages: rows trained without their language")
    input_mask: Fraction = Field(0.15, description="response input frames replaced by the mask token")
    mask_frames: tuple[PositiveInt, PositiveInt] = Field((1, 1), description="length of a masked stretch, frames")
    input_random: Fraction = Field(0.02, description="response input frames replaced by random codes")
    token_dropout: TokenDropoutConfig | None = None
    task_weights: dict[str, PositiveFloat] | None = Field(
        None, description="how often each of model.tasks is trained; null: equally often, a kind's own len less"
    )
    mask_share: Fraction | None = Field(None, description="kinds with masks: share masked; null is a cosine schedule")
    mask_levels: Literal["auto", "one", "all"] = Field(
        "auto",
        description="v2-nar: mask one level and all above it, or all levels alike; auto is one for a residual codec, "
        "all for one whose levels have no order",
    )
    level_loss: Literal["all", "one"] = Field(
        "all", description="v2: a row learns all levels, or one drawn by model.level_weights"
    )
    level_factors: Levels | None = Field(None, description="weight of each level's loss; null is equal")
    ema_decay: Fraction = 0.998
    prompt_seconds: tuple[PositiveFloat, PositiveFloat] = (1.0, 3.0)
    similar_probability: Fraction = 0.5
    join: JoinConfig | None = None
    layerskip: LayerSkipConfig | None = None
    max_response_seconds: PositiveFloat = 12.0
    checkpoint_every: PositiveInt = Field(200, description="steps between checkpoints, each with a validation")
    init_from: str | None = Field(None, description="start from the weights of this voice, a folder (uptraining)")
    seed: int = 0


class EvaluateConfig(Section):
    utterances: PositiveInt = 96
    joined: bool = Field(True, description="with train.join: test on new strings of joined clips, not on recordings")
    recogniser: RecogniserConfig = RecogniserConfig(max_new_tokens=48)
    asr_prompt: str | None = None
    prompt_seconds: tuple[PositiveFloat, PositiveFloat] = (1.5, 3.0)
    batch_size: PositiveInt = 16
    bootstrap: PositiveInt = 1000
    seed: int = 0


class ScoreConfig(Section):
    speaker_encoder: Literal["resemblyzer"] = "resemblyzer"
    dnsmos: bool = True
    dnsmos_utterances: PositiveInt = Field(
        48, description="test items whose three waves DNSMOS hears (0.3 s of one core each)"
    )
    bootstrap: PositiveInt = 1000


class ReportConfig(Section):
    title: str = "Voice model report"
    examples: PositiveInt = 12


class TrackingConfig(Section):
    uri: str | None = Field(None, description="MLflow tracking URI; without it SQLite in ./mlflow.db")
    experiment: str = "vall-e"


class Params(Section):
    """The whole of ``params.yaml``."""

    profile: str = "demo"
    ingest: IngestConfig = IngestConfig()
    transcribe: TranscribeConfig = TranscribeConfig()
    phonemize: PhonemizeConfig = PhonemizeConfig()
    codec: CodecConfig = CodecConfig()
    encode: EncodeConfig = EncodeConfig()
    similar: SimilarConfig = SimilarConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    score: ScoreConfig = ScoreConfig()
    report: ReportConfig = ReportConfig()
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
        one, second = self.train.level_loss == "one", self.model.kind in ("v2-ar", "v2-nar")
        if one and not second:
            raise ValueError(f"train.level_loss one is for v2-ar and v2-nar, not for {self.model.kind}")
        masked = self.model.kind == "v2-nar" and self.train.mask_levels != "all"
        drawn = "level" in KINDS[self.model.kind].modes or one or masked
        if self.model.level_weights is not None and not drawn:
            raise ValueError("model.level_weights: no level is drawn, unless train.level_loss is one")
        if self.train.token_dropout is not None and "level" not in KINDS[self.model.kind].modes:
            raise ValueError(f"train.token_dropout is for level passes, and kind {self.model.kind} has none")
        if self.train.layerskip is not None and not self.model.capabilities.early_exit:
            raise ValueError(f"train.layerskip: backbone {self.model.backbone} has no early exits")
        if self.train.layerskip is not None and self.model.layers < 2:
            raise ValueError("train.layerskip needs model.layers of 2 or more")
        mixed = self.encode.mixtures
        there = {"noise": mixed and mixed.noise, "overlap": mixed and mixed.overlap_db}
        for task in self.model.tasks:
            if (kind := TASKS[task].mixture) is not None and there[kind] is None:
                key = {"noise": "noise (a folder of recordings)", "overlap": "overlap_db"}[kind]
                raise ValueError(f"model.tasks: {task} is learned from mixtures: set encode.mixtures.{key}")
        return self


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the leaves of ``override`` put over it; neither is modified."""
    out = dict(base)
    for key, value in override.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def parse_params(raw: dict[str, Any], source: str = "params") -> Params:
    """Validate a plain dictionary. Raises ConfigError naming the source, the key and the reason."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or "(whole file)"
            reason = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
            value = "" if isinstance(item["input"], (dict, BaseModel)) else f" (got {item['input']!r})"
            lines.append(f"  {where}: {reason}{value}")
        raise ConfigError(f"{source} is not valid:\n" + "\n".join(lines)) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises ConfigError naming the file for anything else."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (run from the project's folder, or name one with --params)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
