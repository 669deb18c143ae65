"""The model's own configuration, and the tables that say what cannot work. A leaf.

Every combination that this file accepts can be trained and spoken with; the others are refused when a configuration
loads, with the reason.
"""

from __future__ import annotations

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
    """

    bidirectional: bool = True
    multi_token: bool = True
    rewind: bool = True
    early_exit: bool = True


BACKBONES: dict[str, Capabilities] = {
    "llama": Capabilities(),
    "retnet": Capabilities(bidirectional=False, rewind=False),
    "yoco": Capabilities(rewind=False),  # bidirectional with a sliding window only
}


class RopeConfig(Section):
    """Rotary positions (2104.09864), plain or stretched to more positions than were trained.

    ``linear`` divides positions by ``factor`` (2306.15595); ``dynamic`` raises the base as a row grows beyond
    ``trained_length`` (NTK-aware: base * (factor * n / trained_length - (factor - 1)) ** (d / (d - 2)))."""

    base: PositiveFloat = 10_000.0
    scaling: Literal["none", "linear", "dynamic"] = "none"
    factor: Annotated[float, Field(ge=1.0)] = 1.0
    trained_length: PositiveInt = 2048


class YocoConfig(Section):
    """The first half of YOCO's layers (2405.05254, section 3): gated retention, or attention to the last ``window``
    positions, the position itself included. The other half looks up keys with ``model.kv_heads`` heads."""

    self_decoder: Literal["retention", "sliding"] = "retention"
    window: PositiveInt = 256


PARALLEL_KINDS = ("ar+nar",)


class ModelConfig(Section):
    """A decoder-only transformer over phones, a prompt's codes and a response's codes.

    ``ar+nar`` is VALL-E (2301.02111): level 0 left to right, each later level in one parallel pass.
    ``ar-depth`` predicts a frame a step; a small head draws its levels one after the other.
    """

    kind: Literal["ar+nar", "ar-depth"] = "ar-depth"
    backbone: Literal["llama", "retnet", "yoco"] = "llama"
    bidirectional: Literal["native", "flip"] = Field(
        "native", description="flip: parallel rows by a second, reversed run of a backbone that sees the past only"
    )
    yoco: YocoConfig = YocoConfig()
    dim: PositiveInt = 256
    layers: PositiveInt = 6
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    ff_dim: PositiveInt = 704
    dropout: Fraction = Field(0.0, description="on each branch of a block; slow on a CPU (its random numbers)")
    rope: RopeConfig = RopeConfig()
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
        return self

    @model_validator(mode="after")
    def _both_ways(self) -> ModelConfig:
        if self.backbone == "yoco" and self.layers % 2:
            raise ValueError(f"model.layers {self.layers} is odd: yoco has as many self- as cross-decoder layers")
        if self.bidirectional == "flip" and self._native.bidirectional:
            raise ValueError(
                "model.bidirectional: flip is for backbones that see the past only: this one sees both ways"
            )
        if self.kind in PARALLEL_KINDS and not self.capabilities.bidirectional:
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
        return replace(self._native, bidirectional=True) if self.bidirectional == "flip" else self._native
