"""The model's own configuration, and the tables that say what cannot work. A leaf.

Every combination that this file accepts can be trained and spoken with; the others are refused when a configuration
loads, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    bidirectional: bool = True
    multi_token: bool = True
    rewind: bool = True
    early_exit: bool = True


BACKBONES: dict[str, Capabilities] = {
    "llama": Capabilities(),
    "bitnet": Capabilities(),
}

CAUSAL_ONLY = ("flash", "cudnn", "flash_attn", "xformers", "sageattention")  # of model.attention: they know no masks


class RopeConfig(Section):
    """Rotary positions (2104.09864), plain or stretched to more positions than were trained.

    ``linear`` divides positions by ``factor`` (2306.15595); ``dynamic`` raises the base as a row grows beyond
    ``trained_length`` (NTK-aware: base * (factor * n / trained_length - (factor - 1)) ** (d / (d - 2)))."""

    base: PositiveFloat = 10_000.0
    scaling: Literal["none", "linear", "dynamic"] = "none"
    factor: Annotated[float, Field(ge=1.0)] = 1.0
    trained_length: PositiveInt = 2048


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

    ``ar+nar`` is VALL-E (2301.02111): level 0 left to right, each later level in one parallel pass.
    ``ar-depth`` predicts a frame a step; a small head draws its levels one after the other.
    """

    kind: Literal["ar+nar", "ar-depth"] = "ar-depth"
    backbone: Literal["llama", "bitnet"] = "llama"
    dim: PositiveInt = 256
    layers: PositiveInt = 6
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    ff_dim: PositiveInt = 704
    dropout: Fraction = Field(0.0, description="on each branch of a block; slow on a CPU (its random numbers)")
    rope: RopeConfig = RopeConfig()
    attention: Literal[
        "auto", "eager", "math", "efficient", "flash", "cudnn", "flex", "flash_attn", "xformers", "sageattention"
    ] = Field("auto", description="kernel of forwards without a past, see vall_e.nn.backends")
    linear: Literal["dense", "ternary"] = Field("dense", description="weights of the blocks: all, or -1, 0, 1 (b1.58)")
    lora: LoraConfig | None = None
    positions: Literal["segment", "sequence"] = Field(
        "segment", description="rotary positions count anew in text, prompt and response, or go on through them"
    )
    codebook_init: bool = Field(True, description="token tables start from the codec's codebook vectors")
    depth_dim: PositiveInt = 256
    depth_layers: PositiveInt = 1
    alignment: bool = Field(True, description="a head at half depth that learns which phone is being spoken")
    level_weights: tuple[PositiveFloat, ...] | None = Field(
        None, description="ar+nar: how often each level is drawn in training"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.dim % self.heads:
            raise ValueError(f"model.dim {self.dim} is not a multiple of model.heads {self.heads}")
        if (self.dim // self.heads) % 2:
            raise ValueError("rotary positions need an even width per head: change model.dim or model.heads")
        if self.heads % self.kv_heads:
            raise ValueError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.kind == "ar-depth" and self.level_weights is not None:
            raise ValueError("model.level_weights belongs to kind ar+nar: ar-depth trains all levels at once")
        if self.attention in CAUSAL_ONLY and self.kind == "ar+nar":
            raise ValueError(f"model.attention {self.attention} is causal only: kind {self.kind} has parallel rows")
        if self.lora is not None and (self.linear == "ternary" or self.backbone == "bitnet"):
            raise ValueError("model.lora needs dense linear layers: an adapter cannot be merged into ternary weights")
        if self.lora is not None and self.lora.per_level and self.kind == "ar-depth":
            raise ValueError("model.lora.per_level: a row of kind ar-depth has all levels, not one of its own")
        return self
