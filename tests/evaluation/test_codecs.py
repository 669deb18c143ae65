"""Codecs beside each other: figures by hand, levels, what is not available, and the command as a person runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.codecs import small
from vall_e.audio import AudioError, save_wav
from vall_e.cli import main
from vall_e.evaluation import codecs as module
from vall_e.evaluation.codecs import Comparison, Item, level_counts, mel_distance, plot, table

RATE = 8000


class Listener:
    """Stands for recogniser, speaker encoder and DNSMOS: hears "one two", or "one" where it is quiet."""

    def transcribe(self, clips):
        return ["one two" if np.abs(wav).max() > 0.2 else "one" for wav, _ in clips]

    def embed(self, clips):
        return np.stack([np.eye(2, dtype=np.float32)[int(np.abs(wav).max() < 0.2)] for wav, _ in clips])

    def score_all(self, clips):
        return [None if np.abs(wav).max() < 0.05 else 3.0 for wav, _ in clips]


class Fader(small.Fsq):
    """Levels scale the sound: half of it with one level, all of it with three."""

    def encode(self, wav):
        self.wav = wav
        return super().encode(wav)

    def decode(self, codes):
        return self.wav * codes.shape[1] / 3


def tone(seconds: float = 0.5, gain: float = 0.5) -> np.ndarray:
    return (gain * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture
def items(tmp_path):
    save_wav(tmp_path / "a.wav", tone(), RATE)
    save_wav(tmp_path / "b.wav", tone(0.25), RATE)
    return [Item("a", tmp_path / "a.wav", "One, two."), Item("b", tmp_path / "b.wav", None)]


def comparison(items, out: Path | None = None) -> Comparison:
    return Comparison(items, Listener(), Listener(), Listener(), out=out)


def test_rows_hold_what_the_listeners_hear(items, tmp_path):
    compared = comparison(items, tmp_path / "out")
    assert compared.seconds == 0.75
    own = compared.recordings()
    assert (own.codec, own.levels, own.wer, own.similarity, own.dnsmos, own.mel_distance) == (
        "recording", None, 0.0, 1.0, 3.0, 0.0,
    )  # fmt: skip
    told = []
    one, whole = compared.copies("fader", Fader(), [3, 1], told.append)
    assert told == [2, 2]
    assert (one.levels, one.wer, one.similarity) == (1, 0.5, 0.0)
    assert (whole.levels, whole.wer, whole.similarity, whole.mel_distance) == (3, 0.0, 1.0, 0.0)
    assert one.bits_per_second == pytest.approx(50 * np.log2(9)) and whole.bits_per_second == 3 * one.bits_per_second
    assert one.decode_rtf > 0 and one.encode_rtf == whole.encode_rtf > 0
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.wav")) == [
        "fader-1/a.wav", "fader-1/b.wav", "fader-3/a.wav", "fader-3/b.wav",
    ]  # fmt: skip


def test_mel_distance_is_of_levels_and_not_of_phase():
    rng = np.random.default_rng(0)
    wav = (0.1 * rng.standard_normal(16_000)).astype(np.float32)
    assert mel_distance(wav, wav) == mel_distance(wav, -wav) == 0
    assert mel_distance(wav, wav[:12_000]) == 0
    assert mel_distance(wav, 2 * wav) == pytest.approx(20 * np.log10(2), abs=0.01)
    assert 0 < mel_distance(wav, 1.1 * wav) < mel_distance(wav, 0.5 * wav) < mel_distance(wav, 0 * wav)


@pytest.mark.parametrize("levels, counts", [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 4, 8, 9])])
def test_numbers_of_levels_that_are_tried(levels, counts):
    assert level_counts(levels) == counts


@pytest.mark.parametrize("name", ["mel", "encodec", "dac", "nemo"])
def test_every_real_codec_gives_rows(items, name):
    rows = comparison(items).copies(name, getattr(small, name)())
    assert [row.levels for row in rows][:2] == [1, 2]
    assert all(row.mel_distance > 0 and np.isfinite(row.mel_distance) for row in rows)


def test_table_and_plot(items, tmp_path):
    compared = comparison(items)
    rows = [compared.recordings(), *compared.copies("fader", Fader())]
    lines = table(rows).splitlines()
    assert len(lines) == len(rows) + 1 and len({len(line) for line in lines}) == 1
    assert lines[0].split() == [name for name, _ in module._COLUMNS] and lines[1].split()[:3] == ["recording", "-", "-"]
    assert plot(rows, tmp_path / "deep" / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_to_compare_on(tmp_path):
    with pytest.raises(ValueError, match="no recordings"):
        comparison([])
    with pytest.raises(AudioError, match="no such file"):
        comparison([Item("x", tmp_path / "x.wav", None)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, gain in (("one", 0.5), ("two", 0.4)):
        save_wav(tmp_path / "speech" / "ann" / f"{name}.wav", tone(0.5, gain), RATE)
        (tmp_path / "speech" / "ann" / f"{name}.txt").write_text("one two")
    monkeypatch.setattr("vall_e.evaluation.asr.Recogniser", lambda config: Listener())
    monkeypatch.setattr("vall_e.evaluation.speaker.SpeakerEncoder", Listener)
    monkeypatch.setattr("vall_e.evaluation.mos.Dnsmos", Listener)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "speech"


def test_the_command_compares_given_weights_and_names_what_is_absent(folder, tmp_path, capsys):
    small.mel().save(tmp_path / "mel")
    torch.manual_seed(0)
    codec = ["--codec", f"mel={tmp_path / 'mel'}", "--codec", "nemo"]
    assert main(["codec", "compare", str(folder), *codec, "--json", "--out", str(tmp_path / "out")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [(row["codec"], row["levels"]) for row in figures["rows"]] == [("recording", None), ("mel", 1), ("mel", 2)]
    assert figures["recordings"] == 2 and "nvidia/audio-codec-44khz" in figures["not_available"]["nemo"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == figures
    assert (tmp_path / "out" / "compare.png").is_file() and len(list((tmp_path / "out").rglob("*.wav"))) == 4
    assert main(["codec", "compare", str(folder), *codec, "--levels", "2", "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "nemo: not available" in printed and "recording" in printed


def test_recordings_that_are_damaged_behind_their_header_are_left_out_and_named(folder, tmp_path, capsys):
    small.mel().save(tmp_path / "mel")
    broken = tone()
    broken[100] = np.nan
    soundfile.write(folder / "ann" / "nan.wav", broken, RATE, subtype="FLOAT")
    whole = (folder / "ann" / "one.wav").read_bytes()
    (folder / "ann" / "half.wav").write_bytes(whole[: len(whole) // 2])
    assert main(["codec", "compare", str(folder), "--codec", f"mel={tmp_path / 'mel'}", "--levels", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["recordings"] == 2
    assert re.search(r"left out: .*nan\.wav", printed.err) and re.search(r"left out: .*half\.wav", printed.err)


def test_a_plot_alone_has_the_speed_too_and_whisper_is_told_its_own_name_of_the_language(folder, tmp_path, monkeypatch):
    asked, drawn = [], []
    monkeypatch.setattr("vall_e.evaluation.asr.Recogniser", lambda config: asked.append(config.language) or Listener())
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot", lambda axes, x, y, *style, label: drawn.append((list(y), label)) or []
    )
    small.mel().save(tmp_path / "mel")
    command = ["codec", "compare", str(folder), "--codec", f"mel={tmp_path / 'mel'}", "--levels", "1"]
    for language in ("cmn", "en-gb", "nb", "de"):
        assert main([*command, "--language", language, "--plot", str(tmp_path / "p.png")]) == 0
    assert asked == ["zh", "en", "no", "de"]
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG" and not (tmp_path / "out").exists()
    assert len(drawn) == 4 * 6 and all(y[0] > 0 for y, _ in drawn[4:6])


@pytest.mark.parametrize("more, message", [
    (["--codec", "opus"], "--codec opus: give each of mel"),
    (["--codec", "mel=nowhere"], "nowhere.*is missing"),
    (["--limit", "0"], "at least 1"),
])  # fmt: skip
def test_wrong_usage_is_told(folder, more, message, capsys):
    assert main(["codec", "compare", str(folder), *more]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_without_recordings_is_told(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["codec", "compare", str(tmp_path / "empty")]) == 2
    assert "empty" in capsys.readouterr().err
