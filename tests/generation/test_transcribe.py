"""A voice that was taught to read a few recordings reads them: phones, words, times, and how sure it is."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.codecs import small
from tests.tiny import model_config, overfit
from vall_e.audio import save_wav
from vall_e.cli import main
from vall_e.decoding import SamplingConfig
from vall_e.generation.synthesize import Voice
from vall_e.generation.transcribe import TranscribeError, _rows, transcribe
from vall_e.generation.written import log_probabilities
from vall_e.models.checkpoint import VoiceConfig, save_model
from vall_e.models.packing import Sample, pack
from vall_e.preparation import CodecConfig, EncodeConfig
from vall_e.text.tokenizer import Tokenizer

RATE = 16_000
TONE, SILENCE = 0.06, 0.5  # seconds
PHONES = {"a": 300, "b": 500, "c": 800, "d": 1200}  # Hz
SAID = {("a", "b"): "one", ("c", "a", "d"): "two", ("d", "d", " ", "b"): "d b", ("b",): "bee"}


def recording(phones) -> np.ndarray:
    """A tone for each phone, with a gap between words, in silence."""
    time = np.arange(round(TONE * RATE)) / RATE
    tones = [0.3 * np.sin(2 * np.pi * PHONES[p] * time) if p != " " else 0 * time for p in phones]
    silence = np.zeros(round(SILENCE * RATE))
    return np.concatenate((silence, *tones, silence)).astype(np.float32)


def make_voice(tasks=("tts", "stt", "un-phn")) -> Voice:
    codec, tokenizer = small.mel(), Tokenizer(PHONES)
    config = VoiceConfig(
        model=model_config("ar", tasks=tasks), levels=codec.levels, codes=codec.codes, phones=len(tokenizer),
        codec=CodecConfig(), encode=EncodeConfig(), sampling=SamplingConfig(max_seconds=2.0), language="en-us",
        with_stress=True, seconds_per_phone=0.15, prompt_seconds=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return Voice(config.build().eval(), config, tokenizer, codec)


@pytest.fixture(scope="module")
def voice() -> Voice:
    voice = make_voice()
    samples = []
    for phones, text in SAID.items():
        ids = np.array(voice.tokenizer.encode(phones))
        ((*_, heard),) = _rows(voice, recording(phones), 2.0, 0)
        samples.append(replace(heard, symbols=ids))
        chars = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
        samples.append(Sample(ids, heard.prompt, heard.response, task="un-phn", symbols=chars))
    overfit(voice.model, samples, steps=300, lr=1e-2)
    voice.model.eval()
    return voice


def test_it_reads_back_its_phones_and_words_alone_and_together(voice: Voice) -> None:
    waves = [recording(phones) for phones in SAID]
    together = transcribe(voice, waves, words=True, batch_size=3)
    for phones, text, wav, found in zip(SAID, SAID.values(), waves, together, strict=True):
        assert tuple(found.phones) == phones and found.text == text
        (segment,) = found.segments
        assert segment.finished and -0.3 < segment.log_probability < 0
        (alone,) = transcribe(voice, [wav])
        assert alone.phones == found.phones and alone.text is None
        assert alone.segments[0].log_probability == pytest.approx(segment.log_probability, abs=1e-4)


def test_a_long_recording_is_read_in_stretches_with_their_times(voice: Voice) -> None:
    order = list(SAID)
    wav = np.concatenate([recording(phones) for phones in order])
    (found,) = transcribe(voice, [wav], words=True)
    assert [segment.phones for segment in found.segments] == order
    assert found.text == " ".join(SAID.values()) and found.seconds == len(wav) / RATE
    at = 0.0
    for phones, segment in zip(order, found.segments, strict=True):
        spoken = at + SILENCE + np.array([0, TONE * len(phones)])
        np.testing.assert_allclose([segment.start, segment.end], spoken, atol=0.08)
        at += 2 * SILENCE + TONE * len(phones)
    assert transcribe(voice, [np.zeros(RATE, dtype=np.float32), np.zeros(0, dtype=np.float32)])[0].segments == ()


def test_log_probabilities_are_those_of_the_symbols_and_their_end(voice: Voice) -> None:
    rows = []
    for phones, read in (("ab", "ab"), ("cad", "db")):
        ((*_, heard),) = _rows(voice, recording(phones), 2.0, 0)
        rows.append(replace(heard, symbols=np.array(voice.tokenizer.encode(read))))
    for row, found in zip(rows, log_probabilities(voice.model, rows), strict=True):
        total = 0.0
        for count, wanted in enumerate([*row.symbols.tolist(), voice.model.layout.stop("phones")]):
            packed = pack([replace(row, symbols=row.symbols[:count])], voice.model.layout)
            with torch.no_grad():
                last = voice.model.hidden(packed)[0, -1]
                total += float(voice.model.symbol_heads["phones"](last).log_softmax(-1)[wanted])
        assert found == pytest.approx(total / (len(row.symbols) + 1), abs=1e-4)
    right, wrong = log_probabilities(voice.model, rows)
    assert right > wrong + 1


def test_a_voice_that_did_not_learn_to_read_says_what_to_train() -> None:
    with pytest.raises(TranscribeError, match=r"did not learn stt .*model.tasks: \[tts, stt\]"):
        transcribe(make_voice(("tts",)), [recording("ab")])
    with pytest.raises(TranscribeError, match="did not learn un-phn"):
        transcribe(make_voice(("tts", "stt")), [recording("ab")], words=True)
    with pytest.raises(ValueError, match="one channel"):
        transcribe(make_voice(("tts", "stt")), [np.zeros((2, 100))])


@pytest.fixture(scope="module")
def folder(voice: Voice, tmp_path_factory) -> SimpleNamespace:
    """The voice on disk, and two recordings."""
    where = tmp_path_factory.mktemp("read")
    save_model(where / "voice", voice.model, voice.config)
    voice.tokenizer.save(where / "voice" / "tokenizer.json")
    voice.codec.save(where / "voice" / "codec")
    files = [save_wav(where / f"{i}.wav", recording(phones), RATE) for i, phones in enumerate(list(SAID)[:2])]
    return SimpleNamespace(voice=where / "voice", files=files, root=where)


def run(*arguments) -> int:
    return main(["transcribe", *map(str, arguments)])


def test_the_command_writes_a_line_a_file_and_goes_on_behind_a_bad_one(folder, capsys) -> None:
    one, two = folder.files
    assert run(one, two, "--model", folder.voice) == 0
    assert capsys.readouterr().out == f"{one}\tone\n{two}\ttwo\n"
    assert run(one, folder.root / "none.wav", two, "--model", folder.voice, "--phones") == 1
    out, err = capsys.readouterr()
    assert out == f"{one}\ta b\n{two}\tc a d\n" and "none.wav: no such file" in err
    assert run(two, "--model", folder.voice, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == "two" and found["phones"] == ["c", "a", "d"] and found["seconds"] == 2 * SILENCE + 3 * TONE
    assert found["segments"][0]["finished"] and found["segments"][0]["log_probability"] > -0.3
    assert run(folder.root / "none.wav", two, "--model", folder.voice, "--json") == 1
    bad, good = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(bad) == {"file", "error"} and "no such file" in bad["error"] and good["text"] == "two"


def test_wrong_usage_is_told(folder, capsys, tmp_path) -> None:
    mute = make_voice(("tts",))
    save_model(tmp_path, mute.model, mute.config)
    mute.tokenizer.save(tmp_path / "tokenizer.json")
    mute.codec.save(tmp_path / "codec")
    assert run(folder.files[0], "--model", tmp_path) == 2
    assert "did not learn stt" in capsys.readouterr().err
    assert run(folder.files[0], "--model", folder.root) == 2
    assert "no trained voice" in capsys.readouterr().err
    assert run(folder.files[0], "--phones", "--words") == 2
