"""Samples while it trains: training ends as without them, a resumed run has each once, a failing one stops nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from tests.training.test_run import CODEC, make_project, params
from vall_e.audio import load
from vall_e.codecs.mel import MelCodec
from vall_e.config import Params
from vall_e.data.readings import Reading
from vall_e.evaluation.audition import Audition
from vall_e.models.vall_e import VallE
from vall_e.text.tokenizer import Tokenizer
from vall_e.training.run import train


class Noisy:
    """Draws from every generator and remembers what it was asked."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.seen, self.kept, self.weights = fails, [], [], []

    def make(self, model: VallE, texts: Sequence[Reading], folder: Path) -> dict[str, float]:
        torch.rand(7), np.random.rand(7)  # noqa: NPY002 - the global generator is what must not move
        assert not model.training and not torch.is_grad_enabled()
        self.seen.append([r.text for r in texts])
        self.weights.append(model.embeddings.symbol.weight.clone())
        (folder / "wave").write_bytes(b"")
        if self.fails:
            raise RuntimeError("no voice today")
        return {"val.wer": 0.5}

    def keep(self, folder: Path) -> None:
        assert (folder / "wave").exists()
        self.kept.append(folder.name)


def config(every: int = 3, **changes: object) -> Params:
    return params(8, {"dropout": 0.1}, samples={"every": every, "utterances": 2, "wer": False}, **changes)


def run(root: Path, chosen: Params, show: object = None, log: object = None) -> None:
    places = (root, root / "models/voice", root / "plots/train.csv", root / ".work")
    train(chosen, *places, log=log, live=root / "live", show=show)


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "models/voice/model.safetensors")


def curve(root: Path, name: str) -> dict[int, float]:
    rows = [line.split(",") for line in (root / "plots/train.csv").read_text().splitlines()[1:]]
    return {int(step): float(value) for step, split, kind, value in rows if f"{split}.{kind}" == name}


def test_training_ends_as_without_samples_and_tells_them_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        make_project(root)
    show, told = Noisy(), {}

    def log(step: int, figures: dict[str, float]) -> None:
        """While it trains, what people look at is what the run itself goes on with."""
        told.setdefault(step, {}).update(figures)
        (curves,) = two.glob(".work/train-*/train.csv")
        assert (two / "live/train.csv").read_bytes() == curves.read_bytes()

    run(one, config())
    run(two, config(), show, log)
    a, b = weights(one), weights(two)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert show.kept == ["step-000003", "step-000006"]
    assert show.seen[0] == show.seen[1] and len(show.seen[0]) == len(show.seen) == 2
    assert not torch.equal(*show.weights)
    assert sorted(p.name for p in (two / "live/samples").iterdir()) == show.kept
    assert told[3]["val.wer"] == 0.5 and told[3]["samples.seconds"] > 0
    assert told[8]["train.tokens_per_second"] > told[8]["train.samples_per_second"] > 0 < told[8]["train.peak_mb"]
    assert sorted(curve(two, "val.loss")) == [2, 3, 4, 6, 8]  # 6 is a checkpoint, which validates, and 3 is none
    for step, value in curve(one, "val.loss").items():
        assert curve(two, "val.loss")[step] == value


def test_a_sample_that_fails_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_project(tmp_path)
    show = Noisy(fails=True)
    run(tmp_path, config(), show)
    assert "no samples of step 3: RuntimeError: no voice today" in capsys.readouterr().err
    assert not show.kept and not list((tmp_path / "live/samples").iterdir())
    assert weights(tmp_path)


def test_seconds_of_samples_are_no_seconds_of_training(tmp_path: Path) -> None:
    class Slow(Noisy):
        def make(self, *args: object) -> dict[str, float]:
            time.sleep(3)
            return super().make(*args)

    make_project(tmp_path)
    told: dict[str, float] = {}
    began = time.perf_counter()
    run(tmp_path, config(), Slow(), lambda _, figures: told.update(figures))
    took = time.perf_counter() - began
    assert told["samples.seconds"] > 3
    assert 8 / told["train.steps_per_second"] < took - 5  # two of them took six


SCRIPT = """\
import sys
from pathlib import Path
from tests.training.test_samples import Noisy, config, run
class Show(Noisy):
    def make(self, model, texts, folder):
        print("made", len(texts), flush=True)
        return super().make(model, texts, folder)
    def keep(self, folder):
        print("kept", folder.name, flush=True)
        if folder.name == sys.argv[2]:
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
run(Path(sys.argv[1]), config(), Show())
"""


def test_a_killed_run_has_each_sample_once(tmp_path: Path) -> None:
    """Killed behind the samples of step 3 it goes on from the checkpoint of step 2, killed behind 6 from that of 4:
    what comes behind the checkpoint is made anew, what was before it is handed over again."""
    make_project(tmp_path)

    def start(kill: str) -> tuple[int, list[str]]:
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), kill], capture_output=True, text=True)
        return done.returncode, done.stdout.split("\n")[:-1]

    assert start("step-000006") == (-signal.SIGKILL, ["made 2", "kept step-000003", "made 2", "kept step-000006"])
    assert start("") == (0, ["kept step-000003", "made 2", "kept step-000006"])
    assert len(list((tmp_path / "live/samples").iterdir())) == 2
    assert sorted(curve(tmp_path, "val.wer")) == [3, 6]


class Deaf:
    """Hears the same in everything."""

    def transcribe(
        self, clips: Sequence[tuple[np.ndarray, int]], prompt: str | None = None, vad: bool = False
    ) -> list[str]:
        self.heard = clips
        return ["a"] * len(clips)


@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar", "nar-len"])
def test_an_audition_leaves_waves_pictures_and_what_was_heard(tmp_path: Path, kind: str) -> None:
    make_project(tmp_path)
    chosen = params(2, {"kind": kind}, {"max_seconds": 0.5}, samples={"every": 2, "utterances": 2})
    codec, tokenizer = (
        MelCodec.load(tmp_path / "models/codec"),
        Tokenizer.load(tmp_path / "data/phonemize/tokenizer.json"),
    )
    kept: list[Path] = []
    show = Audition(chosen, codec, tokenizer, kept.append, Deaf())
    run(tmp_path, chosen, show)
    (folder,) = kept
    report = json.loads((folder / "samples.json").read_text())
    assert [set(row) for row in report["samples"]] == [{"name", "text", "seconds", "heard"}] * 2
    assert 0 <= report["val.wer"] <= 1 and curve(tmp_path, "val.wer") == {2: pytest.approx(report["val.wer"], abs=1e-5)}
    for row in report["samples"]:
        for kept_as in ("", "-recording", "-prompt"):
            assert soundfile.info(folder / f"{row['name']}{kept_as}.wav").samplerate == CODEC.sample_rate
        wave = load(folder / f"{row['name']}.wav", CODEC.sample_rate)[0]
        assert len(wave) == (round(row["seconds"] * CODEC.sample_rate) or CODEC.sample_rate // 20)
        for picture in ("codes", "maps"):
            assert (folder / f"{row['name']}-{picture}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("model", [{"kind": "nar"}, {"kind": "ar", "tasks": ("stt",)}])
def test_models_that_cannot_speak_are_refused_where_settings_are_read(model: dict) -> None:
    with pytest.raises(ValueError, match=f"kind {model['kind']} .*set train.samples to null"):
        params(2, model, samples={"every": 2})
    assert params(2, model).model.kind == model["kind"]
