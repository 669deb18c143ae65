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
        sections: sections of ``ModelConfig`` that it reads, of those in ``OWNED``.
    """

    bidirectional: bool = True
    multi_token: bool = True
    rewind: bool = True
    early_exit: bool = True
    sections: tuple[str, ...] = ("rope",)


BACKBONES: dict[str, Capabilities] = {
    "llama": Capabilities(),
    "mixtral": Capabilities(sections=("rope", "experts")),
    "transformer": Capabilities(sections=()),
    "mamba": Capabilities(bidirectional=False, rewind=False, sections=("mamba",)),
    "mamba2": Capabilities(bidirectional=False, rewind=False, sections=("mamba",)),
}
OWNED = ("rope", "experts", "mamba")  # sections that some backbones have no use for


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


class ModelConfig(Section):
    """A decoder-only transformer over phones, a prompt's codes and a response's codes.

    ``ar+nar`` is VALL-E (2301.02111): level 0 left to right, each later level in one parallel pass.
    ``ar-depth`` predicts a frame a step; a small head draws its levels one after the other.
    """

    kind: Literal["ar+nar", "ar-depth"] = "ar-depth"
    backbone: Literal["llama", "mixtral", "transformer", "mamba", "mamba2"] = "llama"
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
    positions: Literal["segment", "sequence"] = Field(
        "segment", description="rotary positions count anew in text, prompt and response, or go on through them"
    )
    init_from: str | None = Field(
        None, description="the backbone starts from this text model: a folder or hub name in Hugging Face's layout"
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
        can = BACKBONES[self.backbone]
        if self.kind == "ar+nar" and not can.bidirectional:
            raise ValueError(f"model.kind ar+nar has parallel passes, but {self.backbone} reads left to right only")
        for name in OWNED:
            if name not in can.sections and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"model.{name} has no meaning for backbone {self.backbone}")
        if self.rope.scaling == "dynamic" and self.dim // self.heads == 2:
            raise ValueError("model.rope.scaling dynamic needs heads wider than 2: change model.dim or model.heads")
        inner, width = self.dim * self.mamba.expand, self.mamba.head_dim
        if self.backbone == "mamba2" and inner % width:
            raise ValueError(f"model.dim * model.mamba.expand {inner} is no multiple of model.mamba.head_dim {width}")
        if self.kind == "ar-depth" and self.level_weights is not None:
            raise ValueError("model.level_weights belongs to kind ar+nar: ar-depth trains all levels at once")
        return self
