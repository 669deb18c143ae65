"""Training end to end on tiny data: it learns, and a killed run ends as an uninterrupted one."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import CODES, LEVELS, model_config
from vall_e.codecs.mel import MelCodec
from vall_e.config import Params, TrainConfig
from vall_e.corpus.encode import codec_facts
from vall_e.corpus.schema import CODES as CODES_SCHEMA
from vall_e.corpus.schema import SIMILAR, write_table
from vall_e.generation.speech import Request, SpeechError
from vall_e.generation.synthesize import Voice
from vall_e.preparation import CodecConfig, EncodeConfig, MelCodecConfig
from vall_e.regimen import JoinConfig
from vall_e.text.tokenizer import Tokenizer, UnknownPhoneError
from vall_e.training.optimizers import rate_factor
from vall_e.training.plan import describe
from vall_e.training.run import train

CODEC = MelCodecConfig(
    sample_rate=8000,
    n_fft=256,
    hop=160,
    n_mels=16,
    codes=CODES,
    code_dim=4,
    width=8,
    levels=LEVELS,
    griffin_lim_iters=2,
)


def params(steps: int = 8, model: dict | None = None, sampling: dict | None = None, **changes: object) -> Params:
    settings = {
        "max_steps": steps, "batch_frames": 150, "checkpoint_every": 2, "prompt_seconds": (0.1, 0.2), "threads": 1,
        "precision": "32-true", "join": JoinConfig(max_clips=3), "warmup_steps": 2,
    }  # fmt: skip
    return Params(
        codec={"mel": CODEC.model_dump()}, model=model_config(**(model or {})), encode=EncodeConfig(trim_db=None),
        train=TrainConfig(**(settings | changes)), sampling=sampling or {},
    )  # fmt: skip


def make_project(root: Path) -> None:
    """What the stages before training leave, tiny."""
    torch.manual_seed(0)
    codec = MelCodec(CODEC)
    codec.quantizer.tables.normal_()
    codec.save(root / "models/codec")
    import json

    (root / "data/encode").mkdir(parents=True)
    (root / "data/encode/codec.json").write_text(json.dumps(codec_facts(codec)))
    rng = np.random.default_rng(0)
    rows = []
    for index in range(30):
        frames = 6 + index % 4
        codes = (np.arange(LEVELS)[:, None] + index % 4 + np.arange(frames)) % CODES
        rows.append({
            "id": f"u{index}", "speaker": f"s{index % 3}", "language": "en-us",
            "split": "val" if index > 25 else "train",
            "text": "abcd"[index % 4], "phones": ["abcd"[index % 4]], "frames": frames, "levels": LEVELS,
            "codes": codes.reshape(-1).astype(np.int16), "seconds": frames / 50, "source": f"u{index}",
        })  # fmt: skip
    write_table(rows, CODES_SCHEMA, root / "data/encode/shard-00000.parquet")
    near = [{"id": r["id"], "neighbours": [f"u{rng.integers(26)}"], "scores": [0.5]} for r in rows]
    write_table(near, SIMILAR, root / "data/similar/similar.parquet")
    Tokenizer(["a", "b", "c", "d", " "]).save(root / "data/phonemize/tokenizer.json")


def run(root: Path, config: Params) -> dict:
    return train(config, root, root / "models/voice", root / "plots/train.csv", root / ".work")


def test_training_lowers_the_loss_and_leaves_a_voice_that_speaks(tmp_path: Path) -> None:
    make_project(tmp_path)
    figures = run(tmp_path, params(40, text_dropout=0.0, input_mask=0.0, input_random=0.0))
    curve = [line.split(",") for line in (tmp_path / "plots/train.csv").read_text().splitlines()[1:]]
    val = [float(value) for step, split, name, value in curve if (split, name) == ("val", "loss")]
    assert val[-1] < 0.8 * val[0]
    assert figures["steps"] == 40
    assert not list((tmp_path / ".work").glob("train-*"))
    voice = Voice.load(tmp_path / "models/voice", "cpu")
    prompt = 0.1 * np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    speech = voice.speak_batch([Request(phones=["a", " ", "b"], prompt=prompt, seed=3)])[0]
    assert voice.config.longest_text == 5  # three clips of a phone each, and the gaps between them
    assert voice.config.model_copy(update={"response_phones": None}).longest_text > 5  # as older voices: max_seconds
    assert speech.wav.shape == (speech.frames * 160,)
    assert speech.codes.shape[0] == LEVELS
    assert np.isfinite(speech.wav).all()
    again = voice.speak_batch(
        [Request(phones=["d"], prompt=prompt), Request(phones=["a", " ", "b"], prompt=prompt, seed=3)]
    )
    np.testing.assert_array_equal(again[1].codes, speech.codes)
    with pytest.raises(SpeechError, match="nothing to say"):
        voice.speak("", (prompt, 8000))
    with pytest.raises(SpeechError, match="no sound"):
        voice.speak_batch([Request(phones=["a"], prompt=np.zeros(8000, np.float32))])
    with pytest.raises(UnknownPhoneError, match="x"):
        voice.speak_batch([Request(phones=["x"], prompt=prompt)])[0]
    with pytest.raises(SpeechError, match="--ref-text"):
        voice.speak_batch([Request(phones=["a"], prompt=prompt, continue_prompt=True)])[0]


PLAIN = {"guidance": 0.0, "candidates": 1}


@pytest.mark.parametrize("model, train, sampling", [
    ({"kind": "ar+nar", "tasks": ("tts", "stt", "cse")}, {"token_dropout": {"rate": 0.2}}, {}),
    ({"kind": "nar-len", "backbone": "retnet", "bidirectional": "flip"}, {}, {}),
    ({"kind": "ar+nar-len"}, {}, {"first": "mask"}),
    ({"kind": "v2-nar"}, {"level_loss": "one"}, {}),
    ({"kind": "v2-ar", "backbone": "yoco", "linear": "ternary"}, {}, {}),
    ({"layers": 3}, {"layerskip": {"max_dropout": 0.2}}, PLAIN | {"speculation": {"exit_layer": 1, "draft": 3}}),
    ({"lora": {"rank": 2}}, {"init_from": "models/base"}, {}),
])  # fmt: skip
def test_the_family_is_trained_by_one_stage_and_spoken_with_by_one_voice(
    tmp_path: Path, model: dict, train: dict, sampling: dict
) -> None:
    make_project(tmp_path)
    if "init_from" in train:
        run(tmp_path, params(1))
        (tmp_path / "models/voice").rename(tmp_path / "models/base")
    # Three steps teach no voice when to stop: one that stops at once tries again.
    figures = run(tmp_path, params(3, model, sampling | {"max_seconds": 0.5, "retries": 5}, **train))
    assert all(np.isfinite(value) for name, value in figures.items() if "loss" in name)
    voice = Voice.load(tmp_path / "models/voice", "cpu")
    prompt = 0.1 * np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    asked = [Request(phones=[phone], prompt=prompt, seed=3, duration=0.3) for phone in "ab"]
    one, two = voice.speak_batch(asked)
    assert one.frames > 0 and one.codes.shape == (LEVELS, one.frames) and np.isfinite(two.wav).all()
    np.testing.assert_array_equal(voice.speak_batch(asked[1:])[0].codes, two.codes)
    if "init_from" in train:  # the voice behind the adapters is the one that it was before
        before, after = (load_file(tmp_path / "models" / name / "model.safetensors") for name in ("base", "voice"))
        kept = {name.replace(".base.", "."): tensor for name, tensor in after.items()}
        assert set(before) < set(kept), set(before) - set(kept)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in before.items())


def _start(root: Path, **changes: object) -> subprocess.Popen:
    code = (
        "from pathlib import Path; from tests.training.test_run import params, run; "
        f"run(Path({str(root)!r}), params(24, **{changes!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"compile": True},
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
            ],
        ),
    ],
    ids=["plain", "compiled"],
)
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path: Path, changes: dict) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        make_project(root)
    assert _start(one, **changes).wait(timeout=300) == 0
    process = _start(two, **changes)
    deadline = time.monotonic() + 200
    while not list(two.glob(".work/train-*/last.ckpt")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, "the run was over before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (two / "models/voice").exists()
    checkpoint = next(two.glob(".work/train-*/last.ckpt"))
    reached = torch.load(checkpoint, weights_only=False, map_location="cpu")["global_step"]
    assert 0 < reached < 24
    assert _start(two, **changes).wait(timeout=300) == 0
    a, b = (load_file(root / "models/voice/model.safetensors") for root in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in a)
    curves = []
    for root in (one, two):
        lines = (root / "plots/train.csv").read_text().splitlines()
        curves.append([line for line in lines if "steps_per_second" not in line])
    assert curves[0] == curves[1]


def test_rate_schedules() -> None:
    config = TrainConfig(max_steps=100, warmup_steps=10, schedule="linear")
    assert rate_factor(0, config) == pytest.approx(0.1)
    assert rate_factor(10, config) == 1.0
    assert rate_factor(100, config) == pytest.approx(0.02)
    hold = config.model_copy(update={"schedule": "hold"})
    assert rate_factor(99, hold) == 1.0
    cosine = [rate_factor(step, config.model_copy(update={"schedule": "cosine"})) for step in range(10, 101)]
    assert all(a >= b for a, b in itertools.pairwise(cosine))


def test_the_plan_counts_what_would_be_built(tmp_path: Path) -> None:
    facts = describe(params())
    assert facts["codec"] == {"name": "mel", "levels": LEVELS, "codes": CODES, "frame_rate": 50.0}
    make_project(tmp_path)
    built = run(tmp_path, params(2))["parameters"]
    tables = 2  # of phones: embeddings, alignment head
    assert facts["parameters"] - built == tables * (128 - 8) * 32  # the guessed size of the tokenizer


def test_every_codec_has_a_plan_and_one_of_scalars_is_planned_as_such() -> None:
    for name in get_args(CodecConfig.model_fields["name"].annotation):
        facts = describe(Params(codec={"name": name}, model=model_config("v2-nar")))
        assert facts["codec"]["levels"] > 0 and facts["codec"]["name"] == name
    with pytest.raises(ValueError, match="sum_levels"):
        describe(Params(codec={"name": "nemo"}, model=model_config(sum_levels="prompt")))
