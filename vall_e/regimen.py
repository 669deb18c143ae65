"""How a voice is trained: the parameters of section ``train``."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vall_e.family import Levels, ModelConfig, level_shares
from vall_e.fields import Fraction, PositiveFloat, PositiveInt, Section
from vall_e.tasks import TASKS

NEEDED = 0.15  # weight of a task that the kind adds by itself (len), where one of model.tasks has 1


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


class PreflightConfig(Section):
    """What is tried before a run (vall_e.training.preflight). No influence on the result."""

    overfit_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="steps on one batch, timed, before `train` starts; auto: 20 where a long training begins, 0: none. "
        "`stages.preflight` does them always",
    )
    min_fall: Fraction = Field(0.1, description="share of its first loss that the loss of that batch must lose")
    seconds: PositiveFloat = Field(120.0, description="after which these steps end, whatever their number")


class SamplesConfig(Section):
    """What is heard and seen of a model while it trains."""

    every: PositiveInt = Field(500, description="steps between samples")
    utterances: PositiveInt = Field(4, description="texts of the val split that are spoken, speakers in turn")
    wer: bool = Field(True, description="a recogniser (evaluate.recogniser) listens to them, where it is installed")


class RollbackConfig(Section):
    """A step whose loss or gradient is no number, or whose loss jumps, takes the run back to its last checkpoint."""

    factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.5, description="on the rates from that checkpoint on")
    tries: PositiveInt = Field(3, description="rollbacks of a run; one more is an error")
    spike: Annotated[float, Field(gt=1.0)] | None = Field(
        3.0,
        description="a loss so many times the median of those before, and above them all, is a jump; null: only what "
        "is no number",
    )


class DistillConfig(Section):
    """Learning from a trained voice: its distributions beside the codes of the recordings (1503.02531, section 2)."""

    voice: str = Field(description="the teacher, a folder: of the same codec and tokenizer, of any sizes")
    weight: Fraction = Field(0.5, description="share of the loss that is the divergence from the teacher")
    temperature: PositiveFloat = Field(1.0, description="both distributions are flattened by it")


class Changing(Section):
    """What may change while a voice is trained: no shape and no meaning of an id depends on it."""

    task_weights: dict[str, PositiveFloat] | None = Field(
        None, description="how often each of model.tasks is trained; null: equally often, a kind's own len less"
    )
    level_loss: Literal["all", "one"] = Field(
        "all", description="v2: a row learns all levels, or one drawn by model.level_weights"
    )
    level_factors: Levels | None = Field(None, description="weight of each level's loss; null is equal")
    mask_share: Fraction | None = Field(None, description="kinds with masks: share masked; null is a cosine schedule")
    text_dropout: Fraction = Field(0.1, description="rows trained without text, for guidance (2207.12598)")
    prompt_dropout: Fraction = 0.05
    language_dropout: Fraction = Field(0.1, description="with model.languages: rows trained without their language")
    input_mask: Fraction = Field(0.15, description="response input frames replaced by the mask token")
    input_random: Fraction = Field(0.02, description="response input frames replaced by random codes")
    token_dropout: TokenDropoutConfig | None = None
    join: JoinConfig | None = None
    min_response_seconds: Annotated[float, Field(ge=0.0)] = Field(0.0, description="shorter utterances are left out")
    max_response_seconds: PositiveFloat = Field(12.0, description="longer utterances are left out")


class StageConfig(Changing):
    """A stage of a curriculum: what differs from the rest of ``train`` up to a step. What it does not name stays."""

    until: PositiveInt = Field(description="the optimizer step that is no longer of this stage")
    lr_factor: PositiveFloat = Field(1.0, description="on the rates that train.schedule gives")
    level_weights: Levels | None = Field(None, description="in place of model.level_weights")

    @property
    def changes(self) -> dict[str, Any]:
        """The settings of ``train`` that it names."""
        return {name: getattr(self, name) for name in Changing.model_fields if name in self.model_fields_set}

    @model_serializer(mode="wrap")
    def _named_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class Phase(NamedTuple):
    """A stretch of steps of one regimen.

    Attributes:
        first: its first optimizer step.
        train: its settings.
        stage: that they are of; None behind the last one.
    """

    first: int
    train: TrainConfig
    stage: StageConfig | None

    def check(self) -> None:
        """Raises ValueError for settings of which one makes another one idle, or impossible."""
        train, where = self.train, "train" if self.stage is None else f"the train.stages until step {self.stage.until}"
        if train.min_response_seconds >= train.max_response_seconds:
            raise ValueError(f"{where}: min_response_seconds must be below max_response_seconds")
        if train.min_response_seconds and train.join is not None:
            raise ValueError(f"{where}: min_response_seconds is for single utterances, with join set join.min_clips")
        if train.order == "duration" and train.join is not None:
            raise ValueError(f"{where}: order duration is for single utterances, with join set join.curriculum_steps")


class TrainConfig(Changing):
    max_steps: PositiveInt = 3000
    batch_frames: PositiveInt = Field(4000, description="positions in one batch, padding included")
    optimizer: Literal["muon", "adamw", "adam", "schedule-free", "adafactor"] = "muon"
    lr: PositiveFloat = Field(2e-3, description="the optimizer's rate; muon: AdamW's, for the rest")
    muon_lr: PositiveFloat = Field(0.02, description="Muon's rate, for the matrices of the blocks")
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    schedule: Literal["hold", "cosine", "linear", "step", "wsd"] = "linear"
    step_every: PositiveInt = Field(1000, description="schedule step: steps after which the rate falls")
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="schedule step: the factor by which it does"
    )
    decay_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.2, description="schedule wsd: share of max_steps, at the end, in which the rate falls"
    )
    grad_clip: PositiveFloat = 1.0
    accumulate: PositiveInt = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    compile: bool | Literal["auto"] = Field(
        "auto", description="the blocks of the backbone by torch.compile; auto: where it pays and a compiler is there"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = Field(1, description="processes on a machine: a GPU each, or CPU processes")
    nodes: PositiveInt = Field(1, description="machines, under torchrun where there are several")
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = Field(
        "auto",
        description="how processes work together; auto: ddp where there are several; fsdp shares the weights out, "
        "deepspeed what the optimiser knows of them",
    )
    rollback: RollbackConfig = RollbackConfig()
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads; 0 leaves torch's choice")
    label_smoothing: Fraction = 0.05
    alignment_weight: Annotated[float, Field(ge=0.0)] = Field(
        0.3, description="weight of the losses of model.alignment: where a frame is in the text, which phone it says"
    )
    mask_frames: tuple[PositiveInt, PositiveInt] = Field((1, 1), description="length of a masked stretch, frames")
    mask_levels: Literal["auto", "one", "all"] = Field(
        "auto",
        description="v2-nar: mask one level and all above it, or all levels alike; auto is one for a residual codec, "
        "all for one whose levels have no order",
    )
    ema_decay: Fraction = 0.998
    prompt_seconds: tuple[PositiveFloat, PositiveFloat] = (1.0, 3.0)
    similar_probability: Fraction = 0.5
    layerskip: LayerSkipConfig | None = None
    checkpoint_every: PositiveInt = Field(200, description="steps between checkpoints, each with a validation")
    samples: SamplesConfig | None = Field(
        None, description="speak while it trains: waves, pictures, validation, WER. No influence on the result"
    )
    init_from: str | None = Field(
        None,
        description="start from the weights of this voice: a folder, or models:/NAME@ALIAS or models:/NAME/VERSION",
    )
    freeze: tuple[str, ...] = Field((), description="parts that stay as they are, see vall_e.models.freeze")
    thaw: tuple[str, ...] = Field(
        (), description="parts trained all the same: of those, or beside model.lora's adapters"
    )
    preflight: PreflightConfig = PreflightConfig()
    distill: DistillConfig | None = None
    stages: tuple[StageConfig, ...] = Field((), description="of a curriculum; behind the last one ``train`` holds")
    order: Literal["shuffled", "duration"] = Field(
        "shuffled",
        description="duration: the first epoch goes from the shortest utterance to the longest (SortaGrad, 1512.02595, "
        "section 3.2)",
    )
    balance: Literal["none", "speaker", "group", "language"] = Field(
        "none", description="whose shares of an epoch are evened out; none: each utterance comes once"
    )
    balance_exponent: Fraction = Field(
        0.5,
        description="a group's share is the number of its utterances to this power: 1 as they are, 0 alike",
    )
    loader_workers: Annotated[int, Field(ge=0)] = Field(
        1, description="processes that make batches ahead; 0: training waits for them. No influence on the result"
    )
    seed: int = 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The stages, and what comes behind them, where there are steps left."""
        starts = (0, *(stage.until for stage in self.stages))
        out = []
        for first, stage in zip(starts, (*self.stages, None), strict=True):
            changed = self if stage is None else self.model_copy(update=stage.changes)
            out.append(Phase(first, changed, stage))
        return tuple(phase for phase in out if phase.first < self.max_steps)

    def task_mix(self, model: ModelConfig) -> dict[str, float]:
        """How often each task of a model is trained, relative to the others.

        Raises:
            ValueError: ``task_weights`` names a task that is none of them.
        """
        mix = {task: 1.0 if task in model.tasks else NEEDED for task in model.all_tasks} | (self.task_weights or {})
        unknown = sorted(set(mix) - set(model.all_tasks))
        if unknown:
            raise ValueError(f"train.task_weights names {', '.join(unknown)}, which is not among model.tasks")
        return mix

    def loss_factors(self, model: ModelConfig, levels: int, *, residual: bool = True) -> dict[str, float]:
        """Weight of each loss by its name: ``level0`` and so on as ``level_factors`` say; what is written (``digits``)
        as often as a sample writes it for one that speaks, or the few digits of ``len`` would count as much as all the
        codes of a level.

        Raises:
            ValueError: as of ``level_shares`` and ``task_mix``.
        """
        factors = level_shares(self.level_factors, levels, residual=residual)
        samples: Counter[str] = Counter()
        for task, weight in self.task_mix(model).items():
            samples[TASKS[task].output] += weight
        spoken = samples.pop("codes", 1.0)
        return {f"level{level}": factor for level, factor in enumerate(factors)} | {
            vocabulary: weight / spoken for vocabulary, weight in samples.items()
        }

    @model_validator(mode="after")
    def _meaningful(self) -> TrainConfig:
        idle = {
            "muon_lr": self.optimizer == "muon",
            "betas": self.optimizer != "adafactor",
            "step_every": self.schedule == "step",
            "gamma": self.schedule == "step",
            "decay_share": self.schedule == "wsd",
        }
        for name, used in idle.items():
            default = type(self).model_fields[name].default
            if not used and getattr(self, name) != default:
                of = "schedule" if name in ("step_every", "gamma", "decay_share") else "optimizer"
                raise ValueError(f"train.{name} means nothing to {of} {getattr(self, of)}: leave it at {default}")
        if self.optimizer == "schedule-free" and self.schedule != "hold":
            raise ValueError(
                f"optimizer schedule-free needs no schedule: set train.schedule: hold, not {self.schedule}"
            )
        if self.precision == "16-mixed" and self.device == "cpu":
            raise ValueError("train.precision 16-mixed needs a GPU (CUDA): on a CPU take bf16-mixed or 32-true")
        return self

    @model_validator(mode="after")
    def _stages_in_turn(self) -> TrainConfig:
        ends = [0, *(stage.until for stage in self.stages)]
        if any(a >= b for a, b in pairwise(ends)):
            raise ValueError(f"train.stages: their `until` must rise, and they are {ends[1:]}")
        if ends[-1] > self.max_steps:
            raise ValueError(
                f"train.stages: the last goes until step {ends[-1]}, and train.max_steps is {self.max_steps}"
            )
        for number, stage in enumerate(self.stages):
            if not stage.model_fields_set - {"until"}:
                raise ValueError(f"train.stages[{number}] changes nothing: name what differs, or leave it out")
        for phase in self.phases:
            phase.check()
        return self

    @property
    def shares_weights(self) -> bool:
        """Whether each process keeps a part of what the optimiser knows, or of the weights too."""
        return self.strategy in ("fsdp", "deepspeed")

    @model_validator(mode="after")
    def _shared_weights(self) -> TrainConfig:
        if not self.shares_weights:
            return self
        rate = type(self).model_fields["muon_lr"].default
        adamw = "train.optimizer adamw" + f" and train.muon_lr {rate}" * (self.muon_lr != rate)
        misfits = {
            f"a process has a part of every matrix, and {self.optimizer} may need them whole: set {adamw}": (
                self.optimizer not in ("adam", "adamw")
            ),
            "there is no average of the weights: set train.ema_decay 0 (the last weights are saved)": self.ema_decay
            > 0,
            "train.samples are spoken by that average: set it to null": self.samples is not None,
            "there is no scaler for 16-mixed: set train.precision bf16-mixed or 32-true": self.precision == "16-mixed",
        }
        if wrong := [said for said, there in misfits.items() if there]:
            raise ValueError(f"train.strategy {self.strategy}: {'; '.join(wrong)}; or take train.strategy ddp")
        return self
