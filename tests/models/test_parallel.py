"""What is before an output is run once, and every pass is what it would be in one piece."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import CODES, LEVELS, build, sample
from vall_e.family import BACKBONES, KINDS, LoraConfig
from vall_e.models.packing import Sample, pack
from vall_e.models.parallel import ParallelPasses
from vall_e.models.vall_e import VallE

FRAMES = (6, 3, 9)


def _prompts() -> list[Sample]:
    rng = np.random.default_rng(0)
    return [sample(rng, 2 + 2 * i, 3 * i, 0) for i in range(3)]


def _whole(model: VallE, prompt: Sample, codes: np.ndarray, mode: str, level: int) -> torch.Tensor:
    """States of the output of a row that is run in one piece."""
    full = np.zeros((LEVELS, codes.shape[1]), dtype=np.int64)
    full[: len(codes)] = codes
    row = replace(prompt, response=full, mode=mode, level=level, corrupted=full, spoken=None)
    packed = pack([row], model.layout)
    return model.hidden(packed)[0, int(packed.response[0]) + 1 :]


def _assert_as_in_one_piece(model: VallE, modes: tuple[str, ...], copies: int = 1) -> None:
    rng = np.random.default_rng(1)
    passes = ParallelPasses(model, _prompts(), FRAMES, copies)
    rows = [(p, f) for p, f in zip(_prompts(), FRAMES, strict=True) for _ in range(copies)]
    first = True
    with torch.no_grad():
        for mode in modes:
            for level in range(1, LEVELS) if mode == "level" else (0, 0):
                top = CODES + (mode == "mask")
                codes = rng.integers(top, size=(len(rows), LEVELS, max(FRAMES)))
                if first:
                    codes = codes[::copies].repeat(copies, axis=0)
                    first = False
                found = passes(torch.from_numpy(codes), mode, level)
                for row, (prompt, frames) in enumerate(rows):
                    want = _whole(model, prompt, codes[row, :, :frames], mode, level)
                    torch.testing.assert_close(found[row, :frames], want, atol=2e-5, rtol=1e-4)


VOICES = [
    ("nar-len", {"backbone": name})
    for name, can in BACKBONES.items()
    if can.bidirectional and name not in ("yoco", "bitnet")
] + [
    ("ar+nar-len", {"timestep": True, "sum_levels": "off"}),
    ("v2-nar", {"timestep": True}),
    ("nar-len", {"positions": "sequence"}),
    ("nar-len", {"rope": {"scaling": "dynamic", "factor": 2.0, "trained_length": 8}}),
    ("nar-len", {"rope": {"scaling": "dynamic", "factor": 2.0, "trained_length": 8}, "positions": "sequence"}),
    ("nar-len", {"backbone": "yoco", "yoco": {"self_decoder": "sliding", "window": 64}}),
    ("nar-len", {"backbone": "retnet", "bidirectional": "flip"}),
]


@pytest.mark.parametrize(("kind", "changes"), VOICES)
def test_a_pass_behind_the_past_is_the_pass_in_one_piece(kind: str, changes: dict) -> None:
    """Also where a backbone cannot, and runs the whole row; the second pass of a mode meets a past already used."""
    modes = tuple(mode for mode in KINDS[kind].modes if mode != "ar")
    _assert_as_in_one_piece(build(kind, **changes), modes, copies=2)


def test_adapters_of_a_level_make_their_own_past() -> None:
    model = build("nar-len", lora=LoraConfig(per_level=True))
    for name, parameter in model.named_parameters():
        if name.endswith((".adapter.a", ".adapter.b")):
            torch.nn.init.normal_(parameter, std=0.3)
    _assert_as_in_one_piece(model, ("mask", "level"))


def test_what_is_before_the_output_is_run_once() -> None:
    """Positions that the layers see in L - 1 passes: whole rows once, then the frames alone."""
    model, seen = build("nar-len"), []
    model.backbone.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    passes = ParallelPasses(model, _prompts(), FRAMES)
    codes = torch.zeros(3, LEVELS, max(FRAMES), dtype=torch.int64)
    with torch.no_grad():
        for level in range(1, LEVELS):
            passes(codes, "level", level)
    blank = [np.zeros((LEVELS, n), dtype=np.int64) for n in FRAMES]
    rows = [replace(p, response=b, mode="mask") for p, b in zip(_prompts(), blank, strict=True)]
    assert seen == [max(map(model.layout.length, rows)), max(FRAMES)]
