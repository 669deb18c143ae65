"""The encode stage: what a row holds, what is dropped, and the same bytes whatever the batches, workers and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch

from tests.codecs import small
from vall_e.config import ConfigError, Params, parse_params
from vall_e.corpus import encode as module
from vall_e.corpus.clips import batches, encode_clips, prepare
from vall_e.corpus.encode import encode, load_codes
from vall_e.corpus.quality import RejectRateError
from vall_e.corpus.schema import PHONES, REJECTS, UTTERANCES, read_rows, write_table
from vall_e.preparation import EncodeConfig, ExecutorConfig

CODECS = {"mel": small.mel, "encodec": small.encodec, "dac": small.dac}


def tone(seconds: float, rate: int, hertz: float = 220.0, seed: int = 0) -> np.ndarray:
    """A noisy tone with a slow swell, float32 [N]."""
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return ((0.3 * np.sin(2 * np.pi * hertz * t) + 0.05 * noise) * (0.6 + 0.4 * np.sin(7 * t))).astype(np.float32)


class Corpus:
    """A manifest with recordings of differing lengths and rates, phones, and a saved codec."""

    def __init__(self, folder: Path, count: int = 10, codec: str = "mel"):
        self.folder = folder
        self.rows = []
        for index in range(count):
            rate = (16_000, 22_050, 8_000)[index % 3]
            path = folder / "audio" / f"{index}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, tone(0.3 + 0.11 * (index % 5), rate, 200 + 20 * index, index), rate)
            self.add(f"u{index:02d}", path, "test" if index == 7 else "train", speaker=f"s{index % 2}")
        CODECS[codec]().save(folder / "codec")
        self.codec = codec

    def add(self, name: str, path: Path, split: str = "train", speaker: str = "s0") -> None:
        self.rows.append({
            "id": name, "recording": name, "path": str(path), "start": 0.0, "end": 9.0, "speaker": speaker,
            "text": "one", "origin": "given", "language": "en-us", "split": split, "seconds": 0.5,
            "sample_rate": 16_000, "channels": 1, "digest": "0",
        })  # fmt: skip

    def write(self) -> None:
        write_table(self.rows, UTTERANCES, self.folder / "manifest.parquet")
        phones = [{"id": row["id"], "text": "one", "phones": ["w", "ʌ", "n"]} for row in self.rows]
        write_table(phones, PHONES, self.folder / "phones.parquet")

    def run(self, out: str = "out", executor: ExecutorConfig | None = None, **settings) -> tuple[Path, dict]:
        self.write()
        params = {
            "codec": {"name": self.codec},
            "executor": (executor or ExecutorConfig()).model_dump(),
            "encode": {"shard_size": 4, "batch_seconds": 2.0} | settings,
        }
        out_dir = self.folder / out
        manifest, phones = self.folder / "manifest.parquet", self.folder / "phones.parquet"
        figures = encode(
            parse_params(params), manifest, phones, self.folder / "codec", out_dir, self.folder / ".work", False
        )
        return out_dir, figures


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def corpus(tmp_path):
    return Corpus(tmp_path)


def test_shards_hold_every_utterance_in_order_with_its_codes(corpus):
    out, figures = corpus.run()
    assert sorted(p.name for p in out.iterdir()) == [
        "codec.json", "rejects.parquet", "shard-00000.parquet", "shard-00001.parquet", "shard-00002.parquet",
    ]  # fmt: skip
    rows = load_codes(out).to_pylist()
    assert [row["id"] for row in rows] == [f"u{i:02d}" for i in range(10)]
    for row, source in zip(rows, corpus.rows, strict=True):
        assert (row["speaker"], row["split"], row["language"]) == (source["speaker"], source["split"], "en-us")
        assert row["source"] == row["id"] and row["phones"] == ["w", "ʌ", "n"] and row["text"] == "one"
        assert len(row["codes"]) == row["levels"] * row["frames"]
        assert row["frames"] == -(-round(row["seconds"] * 16_000) // 320)
    assert figures["kept"] == 10 and figures["rejected"] == {} and figures["copies"] == 0
    assert figures["frames"] == sum(row["frames"] for row in rows) and figures["shards"] == 3
    assert figures["hours"] == pytest.approx(sum(row["seconds"] for row in rows) / 3600, abs=1e-4)
    assert not (corpus.folder / ".work").exists()


def test_codes_are_row_major_levels_of_the_prepared_recording(corpus):
    out, _ = corpus.run()
    row = load_codes(out).to_pylist()[3]
    codec = small.mel()
    clip = prepare(corpus.rows[3] | {"phones": []}, EncodeConfig(), codec)[0][0]
    expected = codec.encode(torch.from_numpy(clip.wav)[None, None])[0]
    assert np.array_equal(np.array(row["codes"]).reshape(row["levels"], row["frames"]), expected.numpy())


@pytest.mark.parametrize("name", CODECS)
def test_codes_do_not_depend_on_the_rest_of_the_batch(tmp_path, name):
    codec = CODECS[name]()
    corpus = Corpus(tmp_path, 12, name)
    lengths = [0.3, 0.3, 0.31, 0.5, 0.32, 0.3, 0.7, 0.5, 0.33, 0.3, 0.31, 0.5]
    for index, (row, seconds) in enumerate(zip(corpus.rows, lengths, strict=True)):
        soundfile.write(row["path"], tone(seconds, 16_000, 200 + 20 * index, index), 16_000)
    clips = [prepare(row | {"phones": [], "group": None}, EncodeConfig(), codec)[0][0] for row in corpus.rows]
    together = encode_clips(codec, clips, 60.0)
    turned = encode_clips(codec, clips[::-1], 1.0)[::-1]
    assert len(batches([c.frames for c in clips], 10**6, codec.name == "encodec")) < len(clips)
    for clip, one, other in zip(clips, together, turned, strict=True):
        (alone,) = encode_clips(codec, [clip], 60.0)
        assert np.array_equal(one["codes"], alone["codes"]) and np.array_equal(other["codes"], alone["codes"])


def test_speed_copies_are_training_speakers_of_their_own_with_another_pitch(corpus):
    out, figures = corpus.run(speeds=[0.9, 1.1])
    rows = {row["id"]: row for row in load_codes(out).to_pylist()}
    assert figures["kept"] == 10 and figures["copies"] == 18 and len(rows) == 28
    assert "u07@0.9" not in rows, "a test utterance has copies"
    for speed in (0.9, 1.1):
        copy, source = rows[f"u03@{speed}"], rows["u03"]
        assert (copy["speaker"], copy["source"]) == (f"s1@{speed}", "u03")
        assert copy["seconds"] == pytest.approx(source["seconds"] / speed, rel=0.01)
        assert copy["phones"] == source["phones"] and copy["split"] == "train"
    clips, _ = prepare(corpus.rows[3] | {"phones": []}, EncodeConfig(speeds=(0.9, 1.1)), small.mel())

    def pitch(wav):
        return np.abs(np.fft.rfft(wav, 1 << 17)).argmax() * 16_000 / (1 << 17)

    assert [round(pitch(c.wav) / pitch(clips[0].wav), 2) for c in clips] == [1.0, 0.9, 1.1]


def test_speeds_that_would_make_the_same_utterance_twice_are_refused():
    for speeds in ([1.0], [0.9, 0.9]):
        with pytest.raises(ConfigError, match="encode.*each once"):
            parse_params({"encode": {"speeds": speeds}})


def test_utterances_are_cut_out_and_brought_to_one_loudness(corpus):
    codec, rate = small.mel(), 16_000
    loud = tone(0.5, rate)
    padded = np.concatenate([np.zeros(rate // 2), 0.02 * loud, np.zeros(rate)]).astype(np.float32)
    soundfile.write(corpus.folder / "quiet.wav", padded, rate, subtype="FLOAT")
    row = corpus.rows[0] | {"path": str(corpus.folder / "quiet.wav"), "phones": []}
    (clip,), _ = prepare(row | {"start": 0.5, "end": 1.0}, EncodeConfig(), codec)
    assert clip.seconds == 0.5
    assert 0.05 < np.sqrt((clip.wav**2).mean()) < 0.1
    (whole,), _ = prepare(row, EncodeConfig(loudness_lufs=None), codec)
    assert whole.seconds == pytest.approx(2.0) and np.abs(whole.wav).max() < 0.02


def test_bad_recordings_are_rejected_with_rule_value_and_threshold(corpus):
    soundfile.write(corpus.folder / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(corpus.folder / "short.wav", tone(0.06, 16_000), 16_000)
    soundfile.write(corpus.folder / "nan.wav", np.full(16_000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    (corpus.folder / "text.wav").write_text("no audio")
    for name in ("silent", "short", "nan", "text", "missing"):
        corpus.add(name, corpus.folder / f"{name}.wav")
    out, figures = corpus.run(max_reject_rate=0.5)
    assert figures["kept"] == 10 and figures["rejected"] == {"silent": 1, "too_short": 1, "unreadable": 3}
    rejects = {row["id"]: row for row in read_rows(out / "rejects.parquet", REJECTS)}
    assert {name: row["rule"] for name, row in rejects.items()} == {
        "silent": "silent", "short": "too_short", "nan": "unreadable", "text": "unreadable", "missing": "unreadable",
    }  # fmt: skip
    assert all(row["stage"] == "encode" and row["value"] for row in rejects.values())
    assert rejects["short"]["threshold"] == "0.1 s"
    assert {row["id"] for row in load_codes(out).to_pylist()}.isdisjoint(rejects)


def test_too_many_rejects_fail_the_stage_and_a_higher_limit_does_not_start_over(corpus, monkeypatch):
    for index in range(4):
        corpus.add(f"missing{index}", corpus.folder / "missing.wav")
    with pytest.raises(RejectRateError):
        corpus.run(max_reject_rate=0.2)
    assert len(read_rows(corpus.folder / "out" / "rejects.parquet", REJECTS)) == 4
    monkeypatch.setattr(module, "prepare", lambda *a: pytest.fail("a finished shard was done again"))
    assert corpus.run(max_reject_rate=0.5)[1]["kept"] == 10


def test_a_recording_that_comes_back_is_encoded_and_finished_shards_without_such_stay(corpus):
    expected = contents(corpus.run("expected")[0])
    lost = corpus.folder / "audio" / "6.wav"
    kept = lost.rename(corpus.folder / "away.wav")
    with pytest.raises(RejectRateError, match="unreadable"):
        corpus.run(max_reject_rate=0.0)
    done = {path.name: path.stat().st_ino for path in corpus.folder.glob(".work/encode-*/shard-*.parquet")}
    assert len(done) == 3
    kept.rename(lost)
    out, figures = corpus.run(max_reject_rate=0.0)
    assert contents(out) == expected and figures["kept"] == 10
    again = [name for name, inode in done.items() if (out / name).stat().st_ino != inode]
    assert again == ["shard-00001.parquet"]


def test_utterances_without_phones_are_not_looked_at(corpus):
    corpus.write()
    phones = [{"id": "u02", "text": "one", "phones": ["w"]}, {"id": "of-another-corpus", "text": "x", "phones": ["x"]}]
    write_table(phones, PHONES, corpus.folder / "phones.parquet")
    where = [corpus.folder / name for name in ("manifest.parquet", "phones.parquet", "codec", "out", ".work")]
    encode(Params(), *where, progress=False)
    assert load_codes(corpus.folder / "out")["id"].to_pylist() == ["u02"]
    write_table(phones[1:], PHONES, corpus.folder / "phones.parquet")
    with pytest.raises(ValueError, match="no utterance in common"):
        encode(Params(), *where, progress=False)


def test_the_codec_is_described_with_the_codes_of_silence(corpus):
    out, _ = corpus.run()
    facts = json.loads((out / "codec.json").read_text())
    silence = np.array(facts.pop("silence"))
    assert facts == {
        "name": "mel", "sample_rate": 16_000, "frame_rate": 50.0, "levels": 2, "codes": 32, "residual": True,
    }  # fmt: skip
    assert silence.shape == (2, 25) and silence.min() >= 0 and silence.max() < 32


def test_small_windows_write_the_same_codes(corpus, monkeypatch):
    whole, _ = corpus.run("whole")
    monkeypatch.setattr(module, "WINDOW_BATCHES", 0.5)
    assert [len(w) for w in module._windows([{"seconds": 0.6}] * 5, EncodeConfig(batch_seconds=2.0))] == [1] * 5
    assert load_codes(corpus.run("windows")[0]).equals(load_codes(whole))


_RUN = """
import sys, time
from pathlib import Path
from vall_e.config import parse_params
from vall_e.corpus import encode as module

def slow(row, *args, prepare=module.prepare):
    time.sleep(0.15)
    return prepare(row, *args)

module.prepare = slow  # in spawned workers too: this file is their main module

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    params = {
        "executor": {"workers": int(sys.argv[2])},
        "encode": {"shard_size": 4, "batch_seconds": 2.0, "loudness_lufs": None, "max_reject_rate": 0.2},
    }
    names = ("manifest.parquet", "phones.parquet", "codec", "out", ".work")
    module.encode(parse_params(params), *(folder / name for name in names), progress=False)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_resumes_and_ends_in_the_bytes_of_one_undisturbed_process(corpus, workers):
    expected = contents(corpus.run("expected", loudness_lufs=None)[0])
    script = corpus.folder / "run.py"
    script.write_text(_RUN)
    paths = [os.getcwd(), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen([sys.executable, script, corpus.folder, str(workers)], env=environment)
    work = corpus.folder / ".work"
    try:
        deadline = time.time() + 240
        while not list(work.glob("encode-*/shard-*")):
            assert process.poll() is None and time.time() < deadline, "no shard was finished before it could be killed"
            time.sleep(0.01)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in alive), alive
    done = {p.name: p.stat().st_ino for p in work.glob("encode-*/shard-*.parquet")}
    assert 0 < len(done) < 3 and not (corpus.folder / "out").exists()
    out, figures = corpus.run(executor=ExecutorConfig(workers=workers), loudness_lufs=None)
    assert contents(out) == expected and figures["kept"] == 10
    assert {name: (out / name).stat().st_ino for name in done} == done, "a finished shard was done again"


def test_other_parameters_do_not_reuse_old_shards(corpus):
    corpus.write()
    where = [corpus.folder / name for name in ("manifest.parquet", "phones.parquet", "codec")]

    def key(**settings):
        return module._key(parse_params({"encode": settings}), *where)

    assert key() == key(max_reject_rate=0.9)
    assert len({key(), key(shard_size=7), key(speeds=[0.9]), key(trim_db=None), key(loudness_lufs=-20.0)}) == 5
    first = key()
    small.mel(seed=1).save(corpus.folder / "codec")
    assert key() != first


def test_reading_codes_that_are_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the encode stage"):
        load_codes(tmp_path)


@pytest.mark.parametrize("mixed", [False, True])
def test_batches_hold_every_clip_once_within_the_limit(mixed):
    frames = [*np.random.default_rng(0).integers(5, 40, 200).tolist(), 500]
    groups = batches(frames, 120, mixed)
    assert sorted(i for group in groups for i in group) == list(range(201))
    for group in groups:
        lengths = [frames[i] for i in group]
        assert len(group) == 1 or len(group) * max(lengths) <= 120
        assert mixed or len(set(lengths)) == 1
    assert len(groups) < 100


def test_an_utterance_that_the_codec_cannot_take_becomes_a_reject_and_the_others_are_as_without_it(corpus, monkeypatch):
    plain = module.encode_clips

    def choosy(codec, clips, seconds):
        if any(clip.row["id"] == "u05" for clip in clips):
            raise RuntimeError("Given input size: (1x1). Calculated output size: (1x0)")
        return plain(codec, clips, seconds)

    monkeypatch.setattr(module, "encode_clips", choosy)
    folder, figures = corpus.run(max_reject_rate=0.5)
    assert figures["rejected"] == {"poisoned": 1}
    [reject] = read_rows(folder / "rejects.parquet", REJECTS)
    assert (reject["id"], reject["value"][:33]) == ("u05", "RuntimeError: Given input size: (")
    monkeypatch.undo()
    whole = load_codes(corpus.run("whole")[0]).to_pylist()
    assert len(whole) == 10
    assert load_codes(folder).to_pylist() == [row for row in whole if row["id"] != "u05"]


@pytest.mark.slow
def test_an_utterance_that_crashes_its_worker_becomes_a_reject_and_the_others_survive(corpus):
    whole, _ = corpus.run("whole")
    script = corpus.folder / "run.py"
    script.write_text(
        _RUN.replace("time.sleep(0.15)", 'row["id"] == "u05" and os._exit(9)').replace("sys,", "os, sys,")
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, script, corpus.folder, "2"], env=environment, check=True, timeout=240)
    rejects = read_rows(corpus.folder / "out" / "rejects.parquet", REJECTS)
    assert [(row["id"], row["rule"], row["value"]) for row in rejects] == [
        ("u05", "poisoned", "its worker died: exit code 9")
    ]
    kept = load_codes(corpus.folder / "out").to_pylist()
    assert [row["id"] for row in kept] == [f"u{i:02d}" for i in range(10) if i != 5]
    assert len(load_codes(whole)) == 10
