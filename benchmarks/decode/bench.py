"""What is measured: options, models of given sizes with weights that never stop, prompts.

Dimensions: D width, n codes of the one level, N frames to decode.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vall_e.config import read_yaml
from vall_e.family import ModelConfig
from vall_e.models.formats import use_weights
from vall_e.models.packing import Sample
from vall_e.models.vall_e import VallE

Size = Literal["tiny", "ref", "yoco"]
PHONES = 64
LIFT = 10.0  # a channel that is always positive behind all layers, on which the head's row of the stop token stands
PRESET = Path(__file__).resolve().parents[2] / "conf/presets/reference-220m.yaml"
TINY = {"dim": 256, "layers": 6, "heads": 4, "kv_heads": 2, "ff_dim": 704}


@dataclass(frozen=True)
class Options:
    """Sizes of the measurements; the defaults fit two cores.

    Attributes:
        tiny, ref, yoco: the models, each of kind ``ar`` with one level.
        codes: n.
        frames: N of the comparison with no cache.
        tiny_tokens, ref_tokens: N of other decodings.
        past: frames behind which a step is timed, from the fewest to the most.
        pairs: rounds of each comparison.
        steps: engine steps that are timed as one.
        best: weight format that is offered as the best.
        speech_seconds: decoded for the peak of memory, at 75 frames a second.
        bandwidth_mb: see ``ReadBandwidth``.
        threads: of torch.
        voice: folder of a trained voice, for quality and streaming; None takes random weights.
        text: what that voice says.
    """

    tiny: ModelConfig
    ref: ModelConfig
    yoco: ModelConfig
    codes: int = 1024
    frames: int = 750
    tiny_tokens: int = 256
    ref_tokens: int = 96
    past: tuple[int, ...] = (75, 375, 750, 1500, 3000)
    pairs: int = 5
    steps: int = 4
    best: str = "int8"
    speech_seconds: float = 60.0
    bandwidth_mb: int = 512
    threads: int = 2
    voice: Path | None = None
    text: str = "one two three four"


def sized(backbone: str, sizes: dict[str, Any], **changes: Any) -> ModelConfig:
    """A model of kind ``ar`` whose positions go on through the whole sequence, as in ``transformers``."""
    sizes = {name: sizes[name] for name in TINY} | changes
    return ModelConfig(kind="ar", backbone=backbone, positions="sequence", alignment=False, **sizes)


def preset_sizes() -> dict[str, Any]:
    """``model`` of the reference preset."""
    return read_yaml(PRESET)["model"]


def build(config: ModelConfig, codes: int) -> VallE:
    """A model with seeded random weights that never draws the stop token: outputs are as long as they may be."""
    torch.manual_seed(0)
    model = VallE(config, 1, codes, PHONES).eval().requires_grad_(False)
    model.embeddings.segment.weight[1:, 0] = LIFT
    head = model.heads.heads[0].weight
    head[codes], head[:, 0] = 0.0, 0.0
    head[codes, 0] = -10 * LIFT
    return model


def prompts(count: int, codes: int, *, ragged: bool = True, text: int = 16, frames: int = 24) -> list[Sample]:
    """``count`` prompts of random phones and codes, each longer than the one before if they are ``ragged``."""
    rng = np.random.default_rng(0)
    rows = []
    for row in range(count):
        longer = row if ragged else 0
        spoken = rng.integers(codes, size=(1, frames + 5 * longer))
        rows.append(Sample(rng.integers(3, PHONES, size=text + 3 * longer), spoken, spoken[:, :0]))
    return rows


def ragged_lengths(count: int, longest: int) -> list[int]:
    """Lengths from half of ``longest`` to all of it, in no order."""
    lengths = np.linspace(max(1, longest // 2), longest, count).round().astype(int)
    return np.random.default_rng(0).permutation(lengths).tolist()


@dataclass
class Bench:
    """Options and the models that they name, built when they are asked for.

    Attributes:
        details: by figure, what was measured besides its value.
    """

    options: Options
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    _models: dict[tuple[Size, str | None], VallE] = field(default_factory=dict)

    def model(self, size: Size, weights: str | None = "float32") -> VallE:
        """A model of ``options``, its weights in a format of ``use_weights``; None: as it was trained."""
        key = (size, weights)
        if key not in self._models:
            if weights is None:
                self._models[key] = build(getattr(self.options, size), self.options.codes)
            else:
                self._models[key] = use_weights(copy.deepcopy(self.model(size, None)), weights)
        return self._models[key]

    def forget(self, *sizes: Size) -> None:
        """Free the models of ``sizes``."""
        self._models = {key: model for key, model in self._models.items() if key[0] not in sizes}
        gc.collect()

    def prompts(self, count: int, *, ragged: bool = True) -> list[Sample]:
        return prompts(count, self.options.codes, ragged=ragged)

    def tokens(self, size: Size) -> int:
        """Frames that a model of this size decodes."""
        return self.options.tiny_tokens if size == "tiny" else self.options.ref_tokens
