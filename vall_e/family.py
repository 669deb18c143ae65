"""The model's own configuration, and the tables that say what cannot work. A leaf.

Every combination that this file accepts can be trained and spoken with; the others are refused when a configuration
loads, with the reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vall_e.fields import Fraction, PositiveFloat, PositiveInt, Section


@dataclass(frozen=True)
class Capabilities:
    """What a backbone can do.

    Attributes:
        bidirectional: positions may see later ones, as parallel passes need.
        multi_token: several new positions at once behind a past: verifying drafts, going on from a prefix.
        rewind: its cache can forget the last positions: rejected drafts.
        early_exit: the states of its layers can go to the heads: LayerSkip.
        parallel_past: parallel positions may come behind a past made once, and see it and themselves whole.
        sections: sections of ``ModelConfig`` that it reads, of those in ``OWNED``.
    """

    bidirectional: bool = True
    multi_token: bool = True
    rewind: bool = True
    early_exit: bool = True
    parallel_past: bool = True
    sections: tuple[str, ...] = ("rope",)


BACKBONES: dict[str, Capabilities] = {
    "llama": Capabilities(),
    "mixtral": Capabilities(sections=("rope", "experts")),
    "transformer": Capabilities(sections=()),
    "mamba": Capabilities(bidirectional=False, rewind=False, parallel_past=False, sections=("mamba",)),
    "mamba2": Capabilities(bidirectional=False, rewind=False, parallel_past=False, sections=("mamba",)),
    "retnet": Capabilities(bidirectional=False, rewind=False, parallel_past=False),
    "yoco": Capabilities(  # bidirectional with a sliding window only
        rewind=False, parallel_past=False, sections=("rope", "yoco")
    ),
    "bitnet": Capabilities(),
}
OWNED = ("rope", "experts", "mamba", "yoco")  # sections that some backbones have no use for

CAUSAL_ONLY = ("flash", "cudnn", "flash_attn", "xformers", "sageattention")  # of model.attention: they know no masks


Levels = Literal["equal", "decreasing", "normal"] | tuple[PositiveFloat, ...]


def level_shares(spec: Levels | None, levels: int, *, residual: bool = True) -> list[float]:
    """A weight a level: equal, decreasing linearly, normal around the middle (a standard deviation of a quarter of the
    levels), or as given.

    Args:
        residual: levels have an order (RVQ); without one (FSQ) a level's number says nothing about its weight.

    Raises:
        ValueError: as many weights were given as there are not levels, or they go by an order that levels do not have.
    """
    if isinstance(spec, tuple):
        if len(spec) != levels:
            raise ValueError(f"{len(spec)} weights for a codec of {levels} levels: give one a level")
        return list(spec)
    if spec in ("decreasing", "normal") and not residual:
        raise ValueError(f"{spec} weights go by the order of levels, and this codec's have none (FSQ): give a list")
    if spec == "decreasing":
        return [float(levels - level) for level in range(levels)]
    if spec == "normal":
        return [math.exp(-8 * ((level - (levels - 1) / 2) / levels) ** 2) for level in range(levels)]
    return [1.0] * levels


def by_order(name: str, value: str, residual: bool, *, ordered: str, alike: str) -> str:
    """The value of a setting that goes by the order of levels: ``auto`` is ``ordered`` where they have one (RVQ), and
    ``alike`` where they have none (FSQ).

    Raises:
        ValueError: ``ordered`` was asked for, and they have none.
    """
    if value == ordered and not residual:
        raise ValueError(f"{name} {value} goes by the order of levels, and this codec's have none (FSQ): take {alike}")
    return (ordered if residual else alike) if value == "auto" else value


class RopeConfig(Section):
    """Rotary positions (2104.09864), plain or stretched to more positions than were trained.

    ``linear`` divides positions by ``factor`` (2306.15595); ``dynamic`` raises the base as a row grows beyond
    ``trained_length`` (NTK-aware: base * (factor * n / trained_length - (factor - 1)) ** (d / (d - 2)))."""

    base: PositiveFloat = 10_000.0
    scaling: Literal["none", "linear", "dynamic"] = "none"
    factor: Annotated[float, Field(ge=1.0)] = 1.0
    trained_length: PositiveInt = 2048

    @model_validator(mode="after")
    def _consistent(self) -> RopeConfig:
        if self.scaling == "none" and self.factor != 1.0:
            raise ValueError("model.rope.factor belongs to model.rope.scaling linear or dynamic")
        return self


class ExpertsConfig(Section):
    """A mixture of experts (Mixtral, 2401.04088) in place of each feed-forward layer."""

    count: PositiveInt = 8
    active: PositiveInt = Field(2, description="experts that a position goes through")
    balance_weight: Annotated[float, Field(ge=0.0)] = Field(
        0.01, description="weight of the loss that evens the experts' load (2101.03961, equation 4)"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ExpertsConfig:
        if self.active > self.count:
            raise ValueError(f"model.experts.active {self.active} is above model.experts.count {self.count}")
        return self


class MambaConfig(Section):
    """Sizes of a selective state space (Mamba, 2312.00752; Mamba-2, 2405.21060)."""

    state: PositiveInt = Field(16, description="numbers of state per channel; mamba2 affords 64 and more")
    conv: PositiveInt = Field(4, description="positions that the convolution in front of it sees")
    expand: PositiveInt = Field(2, description="inner width over model.dim")
    head_dim: PositiveInt = Field(64, description="mamba2: inner channels of a head")


@dataclass(frozen=True)
class Kind:
    """How a model makes the codes of a response.

    Attributes:
        modes: which kinds of rows it is trained on and decodes with: ``ar`` left to right, ``level`` each level above
            0 in parallel, ``mask`` masked codes in parallel.
        frames: a row of mode ``ar`` or ``mask`` holds all levels of a frame; else level 0 alone.
        tasks: that it cannot speak without.
    """

    modes: tuple[str, ...]
    frames: bool = False
    tasks: tuple[str, ...] = ()

    @property
    def parallel(self) -> bool:
        """It has rows that see later positions."""
        return self.modes != ("ar",)

    @property
    def begins(self) -> bool:
        """It makes level 0: it can speak by itself, and learn where in the text a frame is."""
        return "ar" in self.modes or "mask" in self.modes


KINDS: dict[str, Kind] = {
    "ar": Kind(("ar",)),
    "nar": Kind(("level",)),
    "ar+nar": Kind(("ar", "level")),
    "nar-len": Kind(("mask", "level"), tasks=("len",)),
    "ar+nar-len": Kind(("ar", "mask", "level"), tasks=("len",)),
    "ar-depth": Kind(("ar",), frames=True),
    "v2-ar": Kind(("ar",), frames=True),
    "v2-nar": Kind(("mask",), frames=True),
}
KindName = Literal["ar", "nar", "ar+nar", "nar-len", "ar+nar-len", "ar-depth", "v2-ar", "v2-nar"]
TaskName = Literal["tts", "tts-c", "stt", "phn", "un-phn", "len", "ns", "sr", "tse", "cse", "nse", "vc"]


class YocoConfig(Section):
    """The first half of YOCO's layers (2405.05254, section 3): gated retention, or attention to the last ``window``
    positions, the position itself included. The other half looks up keys with ``model.kv_heads`` heads."""

    self_decoder: Literal["retention", "sliding"] = "retention"
    window: PositiveInt = 256


class LoraConfig(Section):
    """Low-rank adapters on a frozen model (2106.09685): W + (alpha / rank) B A."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    targets: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...] = ("q", "k", "v", "o", "gate", "up", "down")
    form: Literal["layer", "parametrisation"] = Field(
        "layer", description="a low-rank branch beside each linear layer, or a sum inside its weight"
    )
    per_level: bool = Field(False, description="an adapter per codebook level, taken by the rows of that level")

    @model_validator(mode="after")
    def _consistent(self) -> LoraConfig:
        if not self.targets:
            raise ValueError("model.lora.targets names no layer: leave out model.lora to train without adapters")
        if self.per_level and self.form == "parametrisation":
            raise ValueError("model.lora.per_level needs form layer: the rows of a batch share a parametrised weight")
        return self


class ModelConfig(Section):
    """A decoder-only transformer over phones, a prompt's codes and a response's codes.

    Kinds: ``ar`` level 0 left to right and ``nar`` each later level in a parallel pass, in one set of weights
    ``ar+nar`` (VALL-E, 2301.02111); ``nar-len`` level 0 by iterative demasking with a predicted length (MaskGCT,
    2409.00750), ``ar+nar-len`` all three; ``ar-depth`` a frame a step, a small head draws its levels one after the
    other; ``v2-ar`` a frame a step, all levels at once; ``v2-nar`` all levels demasked together.
    """

    kind: KindName = "ar-depth"
    backbone: Literal["llama", "mixtral", "bitnet", "transformer", "mamba", "mamba2", "retnet", "yoco"] = "llama"
    tasks: tuple[TaskName, ...] = Field(("tts",), description="what it learns; kinds with masks add len")
    bidirectional: Literal["native", "flip"] = Field(
        "native", description="flip: parallel rows by a second, reversed run of a backbone that sees the past only"
    )
    dim: PositiveInt = 256
    layers: PositiveInt = 6
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    ff_dim: PositiveInt = 704
    dropout: Fraction = Field(0.0, description="on each branch of a block; slow on a CPU (its random numbers)")
    norm_eps: PositiveFloat = Field(1e-6, description="what RMSNorm adds to the mean square")
    rope: RopeConfig = RopeConfig()
    experts: ExpertsConfig = ExpertsConfig()
    mamba: MambaConfig = MambaConfig()
    yoco: YocoConfig = YocoConfig()
    attention: Literal[
        "auto", "eager", "math", "efficient", "flash", "cudnn", "flex", "flash_attn", "xformers", "sageattention"
    ] = Field("auto", description="kernel of forwards without a past, see vall_e.nn.backends")
    linear: Literal["dense", "ternary"] = Field("dense", description="weights of the blocks: all, or -1, 0, 1 (b1.58)")
    lora: LoraConfig | None = None
    positions: Literal["segment", "sequence"] = Field(
        "segment", description="rotary positions count anew in text, prompt and response, or go on through them"
    )
    causal_size: PositiveInt = Field(1, description="frames that an autoregressive step draws at once")
    init_from: str | None = Field(
        None, description="the backbone starts from this text model: a folder or hub name in Hugging Face's layout"
    )
    codebook_init: bool = Field(True, description="token tables start from the codec's codebook vectors")
    sum_levels: Literal["off", "prompt", "response", "both"] = Field(
        "both",
        description="where a frame shows the sum of its levels; elsewhere a prompt shows level 0, a response the last",
    )
    timestep: bool = Field(False, description="masked rows are told which share of their codes is masked")
    code_heads: Literal["split", "one"] = Field("split", description="a head a level, or one for all levels")
    tie_heads: bool = Field(False, description="split heads share the weights of the response's tables")
    codebook_dim: PositiveInt = Field(256, description="v2: inner width of its codebook encoder and decoder")
    codebook_layers: PositiveInt = Field(1, description="v2: their layers")
    codebook_mixing: Literal["weights", "attention"] = Field(
        "weights", description="v2: how the levels of a frame become one vector"
    )
    depth_dim: PositiveInt = 256
    depth_layers: PositiveInt = 1
    alignment: bool = Field(True, description="heads at half depth that learn which phone is being spoken")
    level_weights: Levels | None = Field(None, description="how often each level is drawn in training; null is equal")
    languages: tuple[str, ...] = Field(
        (), description="espeak-ng languages, a token each in front of the sequence; none: the text alone tells"
    )
    tones: PositiveInt = Field(1, description="tone (style) tokens")

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """``tasks`` and those that the kind cannot do without."""
        return tuple(dict.fromkeys((*self.tasks, *KINDS[self.kind].tasks)))

    def language_id(self, language: str) -> int:
        """Token of a language, from 1; 0 where the model has no languages.

        Raises:
            ValueError: it has others.
        """
        if not self.languages:
            return 0
        if language not in self.languages:
            known = ", ".join(self.languages)
            raise ValueError(f"language {language!r} is none of model.languages: it knows {known}")
        return 1 + self.languages.index(language)

    @model_validator(mode="after")
    def _sizes(self) -> ModelConfig:
        if self.dim % self.heads:
            raise ValueError(f"model.dim {self.dim} is not a multiple of model.heads {self.heads}")
        if (self.dim // self.heads) % 2:
            raise ValueError("rotary positions need an even width per head: change model.dim or model.heads")
        if self.heads % self.kv_heads:
            raise ValueError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if len(set(self.languages)) < len(self.languages):
            raise ValueError("model.languages names a language twice")
        for name in OWNED:
            default = type(self).model_fields[name].default
            if name not in BACKBONES[self.backbone].sections and getattr(self, name) != default:
                raise ValueError(f"model.{name} has no meaning for backbone {self.backbone}")
        if self.rope.scaling == "dynamic" and self.backbone in ("retnet", "yoco"):
            raise ValueError(f"model.rope.scaling dynamic is not for {self.backbone}: take linear")
        if self.rope.scaling == "dynamic" and self.dim // self.heads == 2:
            raise ValueError("model.rope.scaling dynamic needs heads wider than 2: change model.dim or model.heads")
        inner, width = self.dim * self.mamba.expand, self.mamba.head_dim
        if self.backbone == "mamba2" and inner % width:
            raise ValueError(f"model.dim * model.mamba.expand {inner} is no multiple of model.mamba.head_dim {width}")
        if self.attention in CAUSAL_ONLY and KINDS[self.kind].parallel and self.bidirectional == "native":
            raise ValueError(f"model.attention {self.attention} is causal only: kind {self.kind} has parallel rows")
        if self.attention in CAUSAL_ONLY and self.backbone == "yoco" and self.yoco.self_decoder == "sliding":
            raise ValueError(f"model.attention {self.attention} knows no sliding window: take auto, eager or flex")
        if self.lora is not None and (self.linear == "ternary" or self.backbone == "bitnet"):
            raise ValueError("model.lora needs dense linear layers: an adapter cannot be merged into ternary weights")
        if self.lora is not None and self.lora.per_level and KINDS[self.kind].frames:
            raise ValueError(f"model.lora.per_level: a row of kind {self.kind} has all levels, not one of its own")
        if self.lora is not None and self.lora.per_level and self.backbone == "mixtral":
            raise ValueError("model.lora.per_level: the experts of mixtral do not know which row a position is of")
        return self

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        kind = KINDS[self.kind]
        if self.level_weights is not None and self.kind in ("ar", "ar-depth"):
            raise ValueError(f"model.level_weights: kind {self.kind} never draws a level")
        if self.causal_size > 1 and "ar" not in kind.modes:
            raise ValueError(f"model.causal_size is for autoregressive kinds, {self.kind} has no such pass")
        if self.causal_size > 1 and self.kind == "ar-depth":
            raise ValueError(
                "model.causal_size above 1 draws several frames at once, and ar-depth draws one level by level"
            )
        if self.causal_size > 1 and not self.capabilities.multi_token:
            raise ValueError(
                f"model.causal_size above 1 gives {self.backbone}'s cache several frames at once: it takes one"
            )
        if self.timestep and "mask" not in kind.modes:
            raise ValueError(f"model.timestep is for kinds that demask, {self.kind} does not")
        if self.tie_heads and (self.kind in ("ar-depth", "v2-ar", "v2-nar") or self.code_heads == "one"):
            raise ValueError("model.tie_heads is for split heads of the kinds ar, nar and nar-len")
        if self.kind == "v2-nar" and self.bidirectional == "flip":
            raise ValueError(
                "kind v2-nar reads the duration before the response, which a reversed run would let it see: "
                "take nar-len or a backbone that sees both ways"
            )
        if self.kind == "nar" and self.tasks != ("tts",):
            raise ValueError("kind nar only adds levels to what another model drew: its one task is tts")
        if self.alignment and not kind.begins:
            raise ValueError(
                f"model.alignment is read off rows that make level 0, and {self.kind} has none: set it to false"
            )
        return self

    @model_validator(mode="after")
    def _both_ways(self) -> ModelConfig:
        if self.backbone == "yoco" and self.layers % 2:
            raise ValueError(f"model.layers {self.layers} is odd: yoco has as many self- as cross-decoder layers")
        if self.bidirectional == "flip" and self._native.bidirectional:
            raise ValueError(
                "model.bidirectional: flip is for backbones that see the past only: this one sees both ways"
            )
        if KINDS[self.kind].parallel and not self.capabilities.bidirectional:
            raise ValueError(
                f"kind {self.kind} has parallel passes and backbone {self.backbone} sees the past only: "
                "set model.bidirectional: flip, or take another kind or backbone"
            )
        return self

    @property
    def _native(self) -> Capabilities:
        """What the backbone can do by itself."""
        row = BACKBONES[self.backbone]
        retained = self.backbone == "yoco" and self.yoco.self_decoder == "retention"
        return replace(row, bidirectional=False) if retained else row

    @property
    def capabilities(self) -> Capabilities:
        """What the backbone of this configuration can do."""
        if self.bidirectional == "flip":
            return replace(self._native, bidirectional=True, parallel_past=False)
        return self._native
