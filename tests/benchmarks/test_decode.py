"""The benchmark of decoding on the smallest of sizes: keys, what is counted rather than timed, and refusals."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.decode import __main__ as command
from benchmarks.decode import batches, speculation, streaming
from benchmarks.decode.__main__ import FIGURES, TARGETS, flat, main, options, parser
from benchmarks.decode.bench import Bench
from benchmarks.decode.peers import Peer
from benchmarks.decode.speed import longer
from benchmarks.decode.steps import run
from benchmarks.decode.timing import interleaved
from vall_e.decoding import SamplingConfig
from vall_e.generation.synthesize import Request, Voice

TINY = "dim=32 layers=2 heads=4 kv_heads=2 ff_dim=48"
REF = "dim=32 layers=2 heads=4 kv_heads=4 ff_dim=64"
FEW = "--codes 31 --frames 12 --tiny-tokens 16 --ref-tokens 6 --past 4 12 --pairs 1 --steps 1 --bandwidth-mb 4"
SMALL = f"--tiny {TINY} --ref {REF} {FEW} --threads 1 --speech-seconds 0.3".split()
STREAMED = ("first_audio_s", "join_ratio")
TIMED = [key for key in FIGURES if key not in STREAMED]


def bench(*more: str) -> Bench:
    return Bench(options(parser().parse_args([*SMALL, *more])))


def test_every_figure_is_measured_under_its_name_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCHES", (1, 3))
    assert main([*SMALL, "--out", str(tmp_path), "--only", ",".join(reversed(TIMED))]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == [*TIMED, "details"]
    numbers = dict(item for key in TIMED for item in flat(report[key], key))
    assert [*numbers, *STREAMED] == sorted(TARGETS, key=[*numbers, *STREAMED].index)
    assert all(math.isfinite(number) and number > 0 for number in numbers.values())
    assert report["forwards"] == {"nar": 7, "demask": 16}
    assert report["details"]["over_hf_generate"]["ref_best"]["quality"]["of"].startswith("random weights")
    assert json.loads((tmp_path / "decode.json").read_text()) == report
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_is_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def figure(name: str) -> Callable[[Bench], float]:
        return lambda bench: asked.append(name) or 0.5

    monkeypatch.setattr(command, "FIGURES", {name: figure(name) for name in FIGURES})
    out = ["--out", str(tmp_path)]
    assert main([*SMALL, *out, "--only", "join_ratio,bandwidth_share"]) == 0
    assert main([*SMALL, *out, "--only", "yoco_kv_share,bandwidth_share", "--resume"]) == 0
    assert asked == ["bandwidth_share", "join_ratio", "yoco_kv_share"]
    assert list(json.loads((tmp_path / "decode.json").read_text())) == [
        *("bandwidth_share", "yoco_kv_share", "join_ratio", "details")
    ]
    with pytest.raises(ValueError, match="measured with another pairs"):
        main([*SMALL, "--pairs", "3", *out, "--resume"])
    with pytest.raises(SystemExit):
        main([*SMALL, "--resume"])


def test_streams_are_measured(capsys: pytest.CaptureFixture) -> None:
    assert main([*SMALL, "--only", ",".join(STREAMED)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == [*STREAMED, "details"]
    assert report["details"]["first_audio_s"]["frames"] > 0 < report["join_ratio"]


def test_a_click_where_chunks_meet_is_seen_and_frames_before_the_first_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream made of what was spoken whole: its frames have all been drawn, its joins are the signal's own."""
    click = 0.0

    def stream(voice: Voice, request: Request, sampling: SamplingConfig) -> Iterator[SimpleNamespace]:
        wav = voice.speak_batch([request], sampling)[0].wav
        for start in range(0, len(wav), 3200):
            yield SimpleNamespace(wav=wav[start : start + 3200] + (click if start else 0.0))

    monkeypatch.setitem(sys.modules, "vall_e.generation.streaming", SimpleNamespace(stream=stream))
    streaming.streamed.cache_clear()
    whole = streaming._of(small := bench())
    joined = np.concatenate(whole.wavs)
    np.testing.assert_array_equal(joined, whole.offline)
    assert streaming.first_audio_s(small) == pytest.approx(len(joined) / whole.sample_rate)
    steps = np.abs(np.diff(joined))
    assert streaming.join_ratio(small) == pytest.approx(steps[3199::3200].max() / np.percentile(steps, 99.9))
    click = 5.0
    streaming.streamed.cache_clear()
    assert streaming.join_ratio(small) > 4 / np.percentile(steps, 99.9)
    streaming.streamed.cache_clear()


def test_the_peer_is_the_same_network_and_a_changed_one_is_noticed() -> None:
    peer = Peer(bench().model("tiny", None))
    assert peer.check() < 1e-4
    assert peer.generate(bench().prompts(2, ragged=False), 5, "static").shape == (2, 5)
    peer.model.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(
        peer.model.model.layers[1].mlp.down_proj.weight * 1.5, requires_grad=False
    )
    with pytest.raises(RuntimeError, match="differ"):
        peer.check()


def test_outputs_are_as_long_as_was_asked() -> None:
    small = bench()
    codes = run(small.model("tiny"), small.prompts(3), [40, 3, 17])
    assert [c.shape[1] for c in codes] == [40, 3, 17] and len(codes[0].unique()) > 5


@pytest.mark.parametrize("wanted", [0.3, 0.8])
def test_the_early_exit_is_right_as_often_as_is_wanted(wanted: float) -> None:
    small = bench()
    made, row = speculation.Constructed(small), longer(small.prompts(1)[0], 24, 31)
    made.accept(wanted, row)
    assert speculation.acceptance(made.model, row, made.exit) == pytest.approx(wanted, abs=0.02)
    assert speculation.acceptance(made.model, row, 2) == pytest.approx(1.0, abs=1e-5)  # all layers: the model itself


def test_works_take_turns() -> None:
    calls: list[str] = []
    took = interleaved(3, lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == list("ababbaab") and [len(t) for t in took] == [3, 3]


@pytest.mark.parametrize("wrong", [["--only", "speed"], ["--tiny", "depth=3"], ["--ref", "heads=3"]])
def test_wrong_flags_are_refused_by_name(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main([*SMALL, *wrong])
    assert wrong[1].split("=")[0] in capsys.readouterr().err
