"""The networks with fewer copies compute what the package's own do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from vall_e.codecs import seanet
from vall_e.codecs.rows import CACHED
from vall_e.codecs.seanet import lean, recur

SIZES = [
    {"n_filters": 2, "dimension": 16, "lstm": 1},
    {"n_filters": 4, "dimension": 8, "lstm": 2, "n_residual_layers": 3, "ratios": [5, 3, 2]},
]


def pair(kind: str, sizes: dict) -> tuple[nn.Module, nn.Module]:
    """The package's network, seeded, and the lean one with its weights."""
    from encodec import modules

    torch.manual_seed(0)
    theirs, ours = (getattr(modules, kind)(channels=1, norm="none", causal=True, **sizes).eval() for _ in range(2))
    ours = lean(ours)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("sizes", SIZES, ids=["meta", "deep"])
@pytest.mark.parametrize("frames", [1, 2, 5, 6, 7, 8, 40])
@torch.no_grad()
def test_the_same_waves_and_latents_whatever_the_length(sizes: dict, frames: int) -> None:
    """Also below the lengths at which a reflection has to be made of silence."""
    for kind, channels in (("SEANetEncoder", 1), ("SEANetDecoder", sizes["dimension"])):
        theirs, ours = pair(kind, sizes)
        x = torch.randn(3, channels, frames * int(theirs.hop_length) if channels == 1 else frames)
        kept, expected = x.clone(), theirs(x)
        assert expected.std() > 1e-4
        for layout in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
            assert (ours(layout) - expected).abs().max() < 1e-6 * expected.abs().max()
            assert torch.equal(layout, kept)


def test_memory_is_kept_for_the_next_layer_of_the_same_thread_alone() -> None:
    """Also where it was first asked for in inference mode, and where threads run the same network at once."""
    theirs, ours = pair("SEANetEncoder", SIZES[0])
    waves = [torch.randn(2, 1, 3200 * (1 + index)) for index in range(4)]
    with torch.no_grad():
        expected = [theirs(wave) for wave in waves]

    def run(index: int) -> float:
        with torch.inference_mode():
            ours(waves[index])
        with torch.no_grad():
            return max(float((ours(waves[index]) - expected[index]).abs().max()) for _ in range(5))

    with ThreadPoolExecutor(4) as threads:
        assert max(threads.map(run, range(4))) < 1e-5
    seanet._KEPT.__dict__.clear()
    with torch.no_grad():
        ours(waves[0])
        first = seanet._KEPT.room
        ours(waves[0])
        assert seanet._KEPT.room is first
        seanet._room(torch.empty(1), 3 * CACHED)
        assert seanet._KEPT.room is first  # what is large is given back


def test_no_clip_is_copied_for_a_reflection() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        names: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.__name__)
            return function(*args, **kwargs or {})

    theirs, ours = pair("SEANetEncoder", SIZES[0])
    counts = {}
    for name, network in (("theirs", theirs), ("ours", ours)):
        Seen.names = []
        with torch.no_grad(), Seen():
            network(torch.randn(1, 1, 3200))
        counts[name] = sum("reflection_pad" in seen for seen in Seen.names)
    assert counts == {"theirs": 18, "ours": 0}


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_steps_of_an_lstm_in_pieces_are_torchs_own_in_one(layers: int) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(6, 6, layers)
    x = 3 * torch.randn(20, 2, 6)
    expected, (hidden, cell) = lstm(x)
    state, pieces = None, []
    for piece in x.split([1, 7, 1, 11]):
        y, state = recur(lstm, piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), expected)
    torch.testing.assert_close(state, (hidden, cell))
