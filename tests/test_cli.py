"""The command line: a tiny real voice speaks, wrong usage is refused before anything heavy is loaded."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from tests.codecs import small
from tests.test_jobs import tone, write_jobs
from vall_e.cli import main
from vall_e.config import ModelConfig
from vall_e.decoding import SamplingConfig
from vall_e.models.checkpoint import VoiceConfig, save_model
from vall_e.preparation import CodecConfig, EncodeConfig
from vall_e.text.phonemes import phonemize
from vall_e.text.tokenizer import Tokenizer
from vall_e.usage import add_sampling, sampling_given, sampling_of


def make_voice(folder, kind: str = "ar-depth", seed: int = 0, kv_heads: int = 1):
    """A voice with random weights that speaks for 0.4 s and knows the sounds of 'one two three'."""
    torch.manual_seed(seed)
    codec = small.mel()
    tokenizer = Tokenizer.fit(phonemize(["one", "two", "three", "one two", "one two three"], "en-us"))
    config = VoiceConfig(
        model=ModelConfig(kind=kind, dim=32, layers=2, heads=2, kv_heads=kv_heads, ff_dim=64, depth_dim=16),
        levels=codec.levels, codes=codec.codes, phones=len(tokenizer), codec=CodecConfig(), encode=EncodeConfig(),
        sampling=SamplingConfig(max_seconds=0.4, candidates=2), language="en-us", with_stress=True,
        seconds_per_phone=0.1, prompt_seconds=1.0, response_phones=17,
    )  # fmt: skip
    save_model(folder, config.build(), config)
    tokenizer.save(folder / "tokenizer.json")
    codec.save(folder / "codec")
    return folder


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return make_voice(tmp_path_factory.mktemp("models") / "voice")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tone(tmp_path_factory.mktemp("reference") / "ref.mp3", 0.8, 44_100)


def synth(*arguments) -> int:
    return main(["synth", *(str(argument) for argument in arguments)])


def test_one_text_becomes_a_wave_file(voice, reference, tmp_path, capsys):
    out = tmp_path / "deep" / "out.wav"
    assert synth("--model", voice, "--text", "one two three", "--ref-audio", reference, "-o", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    wav, rate = soundfile.read(out)
    assert rate == 16_000 and soundfile.info(out).subtype == "PCM_16"
    assert result["path"] == str(out) and result["id"] == "out"
    assert result["frames"] * 320 == len(wav) and result["seconds"] == pytest.approx(len(wav) / rate, abs=1e-3)
    assert 0 < result["seconds"] <= 0.4
    assert synth("--model", voice, "--text", "one two three", "--ref-audio", reference, "-o", out) == 0
    assert str(out) in capsys.readouterr().out


def test_the_seed_decides_what_is_drawn(voice, reference, tmp_path):
    def speak(name, *more):
        out = tmp_path / name
        assert synth("--model", voice, "--text", "one", "--ref-audio", reference, "-o", out, *more) == 0
        return out.read_bytes()

    assert speak("a.wav", "--seed", 1) == speak("b.wav", "--seed", 1) != speak("c.wav", "--seed", 2)
    greedy = ("--temperature", 0, "--candidates", 1)
    assert speak("d.wav", "--seed", 1, *greedy) == speak("e.wav", "--seed", 2, *greedy)


def test_a_batch_gives_one_line_and_one_file_for_each_job_and_one_for_each_failure(voice, reference, tmp_path, capsys):
    jobs = write_jobs(
        tmp_path,
        {"id": "a", "text": "one two", "ref_audio": str(reference), "seed": 1},
        {"id": "b", "text": "xylophone", "ref_audio": str(reference)},  # sounds that this voice never saw
        {"id": "c", "text": "three", "ref_audio": "missing.wav"},
        "not json",
        {"id": "../d", "text": "two", "ref_audio": str(reference)},
        {"id": "e", "text": "three", "ref_audio": str(reference)},
    )
    assert synth("--model", voice, "--batch", jobs, "--out-dir", tmp_path / "out", "--batch-size", 4) == 1
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c", "line 4", "../d", "e"]
    assert [name for name, line in zip("abcdef", lines, strict=True) if "error" in line] == ["b", "c", "d", "e"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.wav", "e.wav"]
    assert "2 of 6 jobs spoken" in printed.err
    assert not (tmp_path / "d.wav").exists()
    single = tmp_path / "single.wav"
    assert synth("--model", voice, "--text", "one two", "--ref-audio", reference, "-o", single, "--seed", 1) == 0
    together, alone = (soundfile.read(path)[0] for path in (tmp_path / "out" / "a.wav", single))
    assert np.abs(together - alone).max() < 1e-3


def test_a_batch_without_failures_ends_well(voice, reference, tmp_path):
    jobs = write_jobs(tmp_path, {"id": "a", "text": "one", "ref_audio": str(reference)})
    assert synth("--model", voice, "--batch", jobs, "--out-dir", tmp_path / "out") == 0


def test_a_reference_without_a_voice_fails_the_job(voice, tmp_path, capsys):
    silent = tone(tmp_path / "silent.wav", level=0.0)
    assert synth("--model", voice, "--text", "one", "--ref-audio", silent, "-o", tmp_path / "out.wav") == 1
    assert "silent" in capsys.readouterr().err and not (tmp_path / "out.wav").exists()


LONG = "one two three, two one. three two one.\n\nthree two"


def test_long_text_comes_from_a_file_or_the_standard_input_and_is_told_in_segments(
    voice, reference, tmp_path, capsys, monkeypatch
):
    path, out = tmp_path / "text.txt", tmp_path / "out.wav"
    path.write_text(LONG, encoding="utf-8-sig")
    few = ("--model", voice, "--ref-audio", reference, "-o", out, "--retries", 0, "--json")
    assert synth("--text-file", path, *few) == 0
    result = json.loads(capsys.readouterr().out)
    segments = result["segments"]
    assert " ".join(s["text"] for s in segments).split() == LONG.split() and len(segments) > 2
    assert set(segments[0]) == {"text", "start", "end", "finished"}
    assert {"timings", "warnings", "sample_rate", "seconds", "frames"} <= set(result)
    unfinished = [i for i, s in enumerate(segments, 1) if not s["finished"]]
    assert all(any(f"segment {i} (" in w for w in result["warnings"]) for i in unfinished)
    saved = out.read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(LONG.encode())))
    assert synth("--text-file", "-", *few) == 0
    assert out.read_bytes() == saved
    path.write_bytes(b"\xff\xfe\x00")
    assert synth("--text-file", path, *few) == 2
    assert "is not UTF-8 (byte 0)" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["-o", "-", "--stream"]])
def test_a_speed_of_zero_is_no_speed(voice, reference, tmp_path, capsys, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    assert synth("--model", voice, "--text", "one", "--ref-audio", reference, "--speed", 0, *more) == 1
    assert "speed is a factor between 0.25 and 4, not 0" in capsys.readouterr().err


def test_raw_samples_go_to_the_standard_output(voice, reference, tmp_path, capfdbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdout", os.fdopen(os.dup(1), "w"))
    few = ("--model", voice, "--text", "one two", "--ref-audio", reference, "--seed", 3)
    assert synth(*few, "-o", "-") == 0
    printed = capfdbinary.readouterr()
    assert b"s16le at 16000 Hz" in printed.err
    monkeypatch.undo()
    assert synth(*few, "-o", tmp_path / "out.wav") == 0
    saved, _ = soundfile.read(tmp_path / "out.wav", dtype="int16")
    np.testing.assert_array_equal(np.frombuffer(printed.out, dtype="<i2"), saved)


def test_jobs_may_be_long_and_say_how_long(voice, reference, tmp_path, capsys):
    jobs = write_jobs(
        tmp_path,
        {"id": "a", "text": LONG, "ref_audio": str(reference), "speed": 2},
        {"id": "b", "text": "one", "ref_audio": str(reference), "duration": 0.2},
        {"id": "c", "text": "one", "ref_audio": str(reference), "duration": 0.2, "speed": 2},
    )
    assert synth("--model", voice, "--batch", jobs, "--out-dir", tmp_path / "out") == 1
    a, b, c = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert len(a["segments"]) > 2 and b["seconds"] == 0.2 and "both say how long" in c["error"]


def test_the_newest_voice_is_taken_when_none_is_named(reference, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert synth("--text", "one", "--ref-audio", reference) == 2
    assert "no trained voice below models/" in capsys.readouterr().err
    make_voice(tmp_path / "models" / "voice")
    assert synth("--text", "one", "--ref-audio", reference, "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == "out.wav" and (tmp_path / "out.wav").exists()
    assert main(["model", "info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == "models/voice"


@pytest.mark.parametrize("arguments, reason", [
    ([], "required"),
    (["--text", "a", "--batch", "b"], "not allowed with"),
    (["--text", "a"], "--text needs --ref-audio"),
    (["--text", " ", "--ref-audio", "x"], "--text is empty"),
    (["--text", "a", "--text-file", "b"], "not allowed with"),
    (["--text-file", "nothing.txt", "--ref-audio", "x"], "nothing.txt: No such file"),
    (["--text-file", "empty.jsonl", "--ref-audio", "x"], "--text-file is empty"),
    (["--text", "a", "--ref-audio", "x", "-o", "-", "--json"], "--json and -o - both write"),
    (["--text", "a", "--ref-audio", "x", "-o", ""], "no name: name a file, as in -o out.wav"),
    (["--text", "a", "--ref-audio", "x", "-o", ".."], "-o '..' is a folder"),
    (["--text", "a", "--ref-audio", "x", "-o", "/dev/null"], "-o /dev/null is a device"),
    (["--text", "a", "--ref-audio", "x", "-o", "a.mp3"], "-o a.mp3: what is written is WAV: name it a.wav"),
    (["--text", "a", "--ref-audio", "x", "-o", "empty.jsonl/b/a.wav"], "empty.jsonl/b/a.wav: no file can be written"),
    (["--text", "a", "--ref-audio", "x", "--speed", "2", "--duration", "1"], "not allowed with"),
    (["--batch", "b", "--out-dir", "d", "--speed", "2"], "--speed belongs to --text"),
    (["--text", "a", "--ref-audio", "x", "-o", "-", "--stream", "--beam", "2"], "leave out --beam or --stream"),
    (["--text", "a", "--ref-audio", "x", "-o", "-", "--stream", "--duration", "2"], "leave out --stream or these"),
    (["--text", "a", "--ref-audio", "x", "--rank", "beauty"], "invalid choice"),
    (["--text", "a", "--ref-audio", "x", "--weights", "int3"], "invalid choice"),
    (["--text", "a", "--ref-audio", "x", "--out-dir", "d"], "--out-dir belongs to --batch"),
    (["--batch", "b"], "--batch needs --out-dir"),
    (["--batch", "b", "--out-dir", "d", "--ref-text", "x"], "--ref-text belongs to --text"),
    (["--batch", "b", "--out-dir", "d", "--continue-ref"], "--continue-ref belongs to --text; with --batch it stands"),
    (["--batch", "b", "-o", "x.wav"], "with --batch name the folder with --out-dir"),
    (["--batch", "b", "--out-dir", "d", "--stream"], "--stream belongs to --text"),
    (["--batch", "nothing.jsonl", "--out-dir", "d"], "nothing.jsonl: No such file"),
    (["--batch", "empty.jsonl", "--out-dir", "d"], "empty.jsonl has no jobs"),
    (["--text", "a", "--ref-audio", "x", "--seed", "-1"], "--seed must be between"),
    (["--text", "a", "--ref-audio", "x", "--temperature", "hot"], "invalid float value"),
    (["--batch", "b", "--out-dir", "d", "--batch-size", "0"], "--batch-size must be at least 1"),
    (["--text", "a", "--ref-audio", "x", "--model", "nowhere"], "nowhere is no trained voice"),
])  # fmt: skip
def test_wrong_usage_is_told_and_exits_with_2(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    assert synth(*arguments) == 2
    printed = capsys.readouterr()
    assert reason in printed.err and ("--json" in arguments) == bool(printed.out)
    assert synth(*arguments, "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["error"] and (reason in told["error"] or "-o" in arguments)


@pytest.mark.parametrize("arguments, reason", [
    (["--top-p", 2], "--top-p 2.0: Input should be less than or equal to 1"),
    (["--ar-top-p", 2], "--top-p 2.0: Input should be less than or equal to 1"),
    (["--nar-temperature", -1], "--nar-temperature -1.0: Input should be greater than or equal to 0"),
    (["--guidance-rescale", 3], "--guidance-rescale 3.0: Input"),
    (["--banned", -4], "--banned -4: Input should be greater"),
    (["--mirostat", 2, "--top-k", 5], "mirostat chooses what to draw from: with it leave top_k 0"),
    (["--mirostat", 3], "invalid choice: 3"),
    (["--beam", 0, "--candidates", 1], "--beam 0: Input should be greater than 0"),
    (["--exit-layer", 0, "--candidates", 1, "--guidance", 0], "--exit-layer 0: Input should be greater than 0"),
])  # fmt: skip
def test_wrong_settings_name_their_option_before_the_voice_is_read(voice, tmp_path, capsys, arguments, reason):
    folder = tmp_path / "voice"
    shutil.copytree(voice, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    code = synth("--model", folder, "--text", "a", "--ref-audio", "x", *arguments)
    assert code == 2 and reason in capsys.readouterr().err


def test_settings_are_put_over_the_voices_own():
    parser = argparse.ArgumentParser()
    add_sampling(parser)
    base = SamplingConfig(ar={"temperature": 1.3, "banned": (7,)}, nar={"top_k": 3}, candidates=2)
    words = [
        "--top-k",
        "5",
        "--ar-min-p",
        "0.1",
        "--nar-top-p",
        "0.5",
        "--guidance",
        "0",
        "--repetition-each",
        "--max-seconds",
        "3",
    ]
    given = sampling_given(parser.parse_args(words))
    assert sampling_of(given, base) == SamplingConfig(
        ar={"temperature": 1.3, "banned": (7,), "top_k": 5, "min_p": 0.1, "repetition_each": True},
        nar={"top_k": 3, "top_p": 0.5}, candidates=2, guidance=0, max_seconds=3,
    )  # fmt: skip
    assert sampling_of(sampling_given(parser.parse_args([])), base) == base


def test_errors_of_all_commands_are_json_where_that_was_asked_for(voice, tmp_path, capsys):
    missing, out = str(tmp_path / "missing.wav"), str(tmp_path / "out.wav")
    few = ["--model", str(voice), "--json"]
    for command, keys in (
        (["edit", missing, "--start", "0", "--end", "1", "--text", "one", "-o", out], {"error"}),
        (["clean", missing, "-o", out], {"error"}),
        (["synth", "--text", "one", "--ref-audio", missing, "-o", out], {"id", "error"}),
    ):
        assert main([*command, *few]) == 1
        told = json.loads(capsys.readouterr().out)
        assert set(told) == keys and "no such file" in told["error"]
    assert main(["edit", missing, *few]) == 2
    assert "required: --start" in json.loads(capsys.readouterr().out)["error"]
    assert main(["transcribe", missing]) == 2 and capsys.readouterr().out == ""


def test_a_damaged_voice_is_wrong_usage(reference, tmp_path, capsys):
    folder = make_voice(tmp_path / "voice")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert synth("--model", folder, "--text", "one", "--ref-audio", reference) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_model_info_tells_size_and_configuration(voice, capsys):
    assert main(["model", "info", str(voice), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["dim"] == 32 and facts["levels"] == 2 and facts["language"] == "en-us"
    assert facts["parameters"] == sum(p.numel() for p in VoiceConfig.model_validate(
        {key: facts[key] for key in VoiceConfig.model_fields}).build().state_dict().values())  # fmt: skip
    assert main(["model", "info", str(voice)]) == 0
    text = capsys.readouterr().out
    assert 'model.kind = "ar-depth"' in text and f"{facts['parameters']:,} parameters" in text


def test_help_is_quick_because_nothing_heavy_is_imported():
    program = """
import sys
from vall_e.cli import main
try:
    main(["synth", "--help"])
finally:
    heavy = {"torch", "numpy", "soundfile", "tqdm"} & set(sys.modules)
    print("heavy:", sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "heavy: []" in done.stdout and "--ref-audio" in done.stdout
