"""Jobs files: what is accepted, what is refused and why, and that one bad job never stops the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vall_e.audio import AudioError
from vall_e.decoding import SamplingConfig
from vall_e.generation.speech import Audio, SpeechError, Timings, load_reference
from vall_e.jobs import Job, JobError, Result, is_model, newest_model, output_of, read_jobs, speak


def write_jobs(folder: Path, *lines) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def tone(path: Path, seconds: float = 0.5, rate: int = 16_000, level: float = 0.3, **how) -> Path:
    wav = level * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)
    soundfile.write(path, wav.astype(np.float32), rate, **how)
    return path


def test_jobs_are_read_in_order_and_empty_lines_passed_over(tmp_path):
    path = write_jobs(
        tmp_path,
        {"id": "a", "text": "one", "ref_audio": "/x.wav"},
        "",
        {"id": "ü 2", "text": "zwei", "ref_audio": "/y.wav", "ref_text": "drei", "seed": 7},
        {"id": "c", "text": "three", "ref_audio": "/z.wav", "ref_text": None, "seed": None},
    )
    out = tmp_path / "out"
    assert read_jobs(path, out) == [
        Job("a", "one", Path("/x.wav"), out / "a.wav"),
        Job("ü 2", "zwei", Path("/y.wav"), out / "ü 2.wav", "drei", 7),
        Job("c", "three", Path("/z.wav"), out / "c.wav"),
    ]


GOOD = {"id": "a", "text": "one", "ref_audio": "x.wav"}


@pytest.mark.parametrize("line, name, reason", [
    ("{'id': 'a'}", "line 1", "is not JSON"),
    ("[1]", "line 1", "expected an object with id, text, ref_audio, found list"),
    (GOOD | {"ref_adio": "x"}, "a", "unknown key 'ref_adio'; known are id, text, ref_audio, ref_text, seed"),
    ({"id": "a", "text": "one"}, "a", "'ref_audio' is missing"),
    ({"text": "one", "ref_audio": "x"}, "line 1", "'id' is missing"),
    (GOOD | {"id": 3}, "line 1", "'id' must be text, found 3"),
    (GOOD | {"text": ["one"]}, "a", "'text' must be text"),
    (GOOD | {"text": "  "}, "a", "'text' is empty"),
    (GOOD | {"seed": "1"}, "a", "'seed' must be a whole number, found '1'"),
    (GOOD | {"seed": True}, "a", "'seed' must be a whole number"),
    (GOOD | {"seed": -1}, "a", "'seed' must be between"),
    (GOOD | {"seed": 2**63}, "a", "'seed' must be between"),
    (GOOD | {"speed": "fast"}, "a", "'speed' must be a number, found 'fast'"),
    (GOOD | {"id": "../a"}, "../a", "is not a file name inside"),
])  # fmt: skip
def test_a_bad_line_becomes_an_error_that_says_why(tmp_path, line, name, reason):
    (result,) = read_jobs(write_jobs(tmp_path, line), tmp_path / "out")
    assert isinstance(result, Result) and result.id == name
    assert reason in result.error and "line 1" in result.error
    assert set(result.as_dict()) == {"id", "error"}


def test_lines_end_at_line_feeds_only_and_bytes_that_are_no_utf8_are_told(tmp_path):
    path = tmp_path / "jobs.jsonl"
    lines = [json.dumps(GOOD | {"text": text}, ensure_ascii=False) for text in ("one\u2028two\x85", "\xfcber")]
    path.write_bytes(b"\xef\xbb\xbf" + lines[0].encode() + b"\r\n" + lines[1].encode("latin-1") + b"\n")
    good, bad = read_jobs(path, tmp_path / "out")
    assert good.text == "one\u2028two\x85"
    assert bad.id == "line 2" and "line 2 is not UTF-8 (byte 21): convert the file" in bad.error


def test_an_id_used_twice_would_overwrite_a_file(tmp_path):
    first, second, third = read_jobs(write_jobs(tmp_path, GOOD, GOOD, GOOD | {"id": "b"}), tmp_path / "out")
    assert isinstance(first, Job) and isinstance(third, Job)
    assert "'a' was used before" in second.error


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../../b", "/etc/a", "a//b", "..\\a", "C:\\a", "C:a", "a\nb", "a/"]
)
def test_ids_that_are_no_file_names_inside_the_folder_are_refused(tmp_path, name):
    with pytest.raises(JobError, match="output folder"):
        output_of(name, tmp_path / "out")


def test_an_id_through_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "away").symlink_to(tmp_path)
    with pytest.raises(JobError, match="leads out"):
        output_of("away/a", tmp_path / "out")
    assert output_of("part/a.b", tmp_path / "out") == tmp_path / "out" / "part" / "a.b.wav"


def test_a_relative_reference_is_beside_the_jobs_file_or_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    path = write_jobs(tmp_path / "jobs", GOOD)
    assert read_jobs(path, tmp_path)[0].ref_audio == Path("x.wav")
    tone(tmp_path / "cwd" / "x.wav")
    assert read_jobs(path, tmp_path)[0].ref_audio.resolve() == tmp_path / "cwd" / "x.wav"
    tone(tmp_path / "jobs" / "x.wav")
    assert read_jobs(path, tmp_path)[0].ref_audio.resolve() == tmp_path / "jobs" / "x.wav"


@pytest.mark.parametrize("name, how", [
    ("a.wav", {"rate": 44_100, "subtype": "FLOAT"}), ("a.flac", {"rate": 48_000}), ("a.ogg", {"rate": 22_050}),
    ("a.mp3", {"rate": 32_000}), ("a.wav", {"rate": 8_000, "subtype": "PCM_U8"}),
])  # fmt: skip
def test_a_reference_of_any_format_and_rate(tmp_path, name, how):
    wav = load_reference(tone(tmp_path / name, **how), 16_000)
    assert wav.dtype == np.float32 and len(wav) == pytest.approx(8_000, rel=0.1)
    assert np.abs(np.fft.rfft(wav)).argmax() * 16_000 / len(wav) == pytest.approx(220, abs=3)


def test_references_in_which_no_voice_can_be_heard_are_refused(tmp_path):
    with pytest.raises(SpeechError, match=r"short.wav: 0.10 s of reference are too short; give 0.2 s"):
        load_reference(tone(tmp_path / "short.wav", 0.1), 16_000)
    with pytest.raises(SpeechError, match="silent"):
        load_reference(tone(tmp_path / "silent.wav", level=0.0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(8_000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN"):
        load_reference(tmp_path / "nan.wav", 16_000)
    with pytest.raises(AudioError, match="no such file"):
        load_reference(tmp_path / "missing.wav", 16_000)


class Parrot:
    """Says its prompt; fails on 'bad' and, like a real batch, takes its whole batch down with it."""

    sample_rate = 16_000

    def __init__(self):
        self.sizes = []

    def speak_batch(self, requests, sampling):
        self.sizes.append(len(requests))
        if any(request.text == "crash" for request in requests):
            raise RuntimeError("out of memory")
        if any(request.text == "bad" for request in requests):
            raise ValueError("text 'bad' has no phones")
        return [
            Audio(
                request.prompt, 16_000, np.zeros((2, 25), dtype=np.int64), 0.0, Timings(0.0, 0.0, 0.1, 0.0, 500.0), (),
                [f"seed {request.seed}, {request.prompt_text}"],
            ) for request in requests
        ]  # fmt: skip


def test_every_job_has_its_result_in_order_and_bad_ones_stop_nobody(tmp_path):
    reference = tone(tmp_path / "ref.wav")
    lines = [{"id": f"j{i}", "text": "good", "ref_audio": "ref.wav"} for i in range(9)]
    lines[1] |= {"seed": 5, "ref_text": "hello"}
    lines[2]["text"] = "bad"
    lines[3]["ref_audio"] = "missing.wav"
    lines[4]["text"] = "crash"
    lines[6]["id"] = "../escape"
    lines.append("not json")
    voice = Parrot()
    results = list(speak(voice, read_jobs(write_jobs(tmp_path, *lines), tmp_path / "out"), SamplingConfig(seed=3), 4))
    assert [r.id for r in results] == ["j0", "j1", "j2", "j3", "j4", "j5", "../escape", "j7", "j8", "line 10"]
    errors = {r.id: r.error for r in results if r.error}
    assert errors["j2"] == "text 'bad' has no phones" and errors["j4"] == "RuntimeError: out of memory"
    assert "missing.wav: no such file" in errors["j3"] and "line 10" in errors["line 10"]
    assert set(errors) == {"j2", "j3", "j4", "../escape", "line 10"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"j{i}.wav" for i in (0, 1, 5, 7, 8)]
    written, rate = soundfile.read(results[1].path)
    assert rate == 16_000 and np.abs(written - soundfile.read(reference)[0]).max() < 1e-3
    assert [r.as_dict()["warnings"] for r in results[:2]] == [["seed 3, None"], ["seed 5, hello"]]
    assert results[0].as_dict() == {
        "id": "j0", "path": str(tmp_path / "out" / "j0.wav"), "seconds": 0.5, "frames": 25, "sample_rate": 16_000,
        "compute_seconds": 0.1, "segments": [], "warnings": ["seed 3, None"],
        "timings": {"prepare": 0.0, "prefill": 0.0, "decode": 0.1, "codec": 0.0, "tokens_per_second": 500.0},
    }  # fmt: skip
    assert voice.sizes == [3, 1, 1, 1, 3, 1, 1, 1, 1]


def test_a_result_that_cannot_be_written_is_an_error_of_its_job(tmp_path):
    tone(tmp_path / "ref.wav")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "taken").write_text("a file where a folder should be")
    names = ("taken/a", "n" * 300, "c")
    jobs = [Job(name, "x", tmp_path / "ref.wav", tmp_path / "out" / f"{name}.wav") for name in names]
    results = list(speak(Parrot(), jobs, SamplingConfig()))
    assert [bool(r.error) for r in results] == [True, True, False]


def test_the_newest_whole_voice_is_found(tmp_path):
    import os

    assert newest_model(tmp_path / "nothing") is None
    for age, name in enumerate(("old", "new", "codec")):
        (tmp_path / name).mkdir()
        for file in ("model.safetensors", "config.json", "tokenizer.json")[: 2 if name == "codec" else 3]:
            (tmp_path / name / file).write_text("x")
            os.utime(tmp_path / name / file, (age, age))
    assert newest_model(tmp_path) == tmp_path / "new"
    assert is_model(tmp_path / "old") and not is_model(tmp_path / "codec")
