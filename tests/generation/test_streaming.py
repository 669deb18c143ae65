"""Speech in pieces: the same codes and the same sound as all at once, early, and no longer than it is listened to."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.codecs import small
from tests.tiny import model_config
from vall_e.decoding import (
    BeamConfig,
    LevelParams,
    LongTextConfig,
    SamplingConfig,
    SamplingParams,
    SpeculationConfig,
)
from vall_e.generation import segments, streaming
from vall_e.generation.ar import decode
from vall_e.generation.nar import fill_levels
from vall_e.generation.quality import Fault
from vall_e.generation.speech import SpeechError
from vall_e.generation.streaming import Pace, draw, stream
from vall_e.generation.synthesize import Request, Voice
from vall_e.models.checkpoint import VoiceConfig
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.preparation import CodecConfig, EncodeConfig
from vall_e.text.phonemes import phonemize
from vall_e.text.tokenizer import Tokenizer

CODECS = {"mel": small.mel, "encodec": small.encodec, "dac": small.dac, "fsq": small.Fsq}
NEAR = {"mel": 0.02, "encodec": 1e-4, "dac": 1e-4, "fsq": 1e-6}  # RMS of the difference over that of the whole
FRAMES, DEFAULT = 70, Pace()
SAMPLING = SamplingConfig(ar={"temperature": 1.0}, nar={"temperature": 1.0}, guidance=0.0, candidates=1)
CAREFUL = SAMPLING.model_copy(update={"ar": SamplingParams(temperature=0.3)})


def endless(kind: str, codec) -> VallE:
    """A model with random weights that never stops by itself."""
    torch.manual_seed(0)
    model = VallE(model_config(kind), codec.levels, codec.codes, 9, residual=codec.residual).eval()
    head = model.heads.first if kind == "ar-depth" else model.heads.heads[0] if kind == "ar+nar" else None
    if head is not None:
        with torch.no_grad():
            head.weight[: codec.codes] *= 2
    model.heads.register_forward_hook(partial(_going_on, codec.codes))
    return model


def _going_on(stop: int, heads: torch.nn.Module, inputs: tuple, logits: torch.Tensor) -> torch.Tensor:
    return logits.index_fill(-1, torch.tensor([stop]), -1e4) if inputs[1] == 0 else logits


def prompt(codec, prefix: int = 0) -> Sample:
    rng = np.random.default_rng(0)
    codes = rng.integers(codec.codes, size=(codec.levels, 8 + prefix))
    return Sample(rng.integers(3, 9, size=5), codes[:, :8], codes[:, 8:])


def pieces(model, codec, pace=DEFAULT, sample=None, longest=FRAMES, sampling=SAMPLING):
    found = list(draw(model, codec, sample or prompt(codec), sampling, 3, longest, pace))
    assert [candidate is None for *_, candidate in found] == [True] * (len(found) - 1) + [False]
    waves, codes, candidates = zip(*found, strict=True)
    for wav, part in zip(waves, codes, strict=True):
        assert wav.dtype == np.float32 and len(wav) == part.shape[1] * codec.hop
    return waves, np.concatenate(codes, axis=1), candidates[-1]


def offline(codec, codes: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return codec.decode(torch.from_numpy(codes)[None])[0, 0].numpy()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar"])
def test_pieces_are_the_whole_without_a_jump_at_their_joins(kind: str, name: str) -> None:
    codec = CODECS[name]()
    model = endless(kind, codec)
    pace = Pace(first=6.5 / codec.frame_rate, chunk=16.5 / codec.frame_rate)
    waves, codes, candidate = pieces(model, codec, pace)
    assert codes.shape[1] > 40 and len(waves) > 3
    np.testing.assert_array_equal(codes[: model.layout.shown], candidate.codes)
    whole, joined = offline(codec, codes), np.concatenate(waves)
    assert np.sqrt(np.mean((joined - whole) ** 2)) < NEAR[name] * np.sqrt(np.mean(whole**2))
    steps, ends = np.abs(np.diff(joined)), np.cumsum([len(w) for w in waves if len(w)])[:-1]
    assert steps[ends - 1].max() < np.quantile(np.abs(np.diff(whole)), 0.999) + 1e-5


@pytest.mark.parametrize("kind", ["ar-depth", "v2-ar"])
def test_frames_are_those_of_plain_decoding_and_any_pace_gives_the_same_sound(kind: str) -> None:
    codec = small.dac()
    model = endless(kind, codec)
    (plain,) = decode(model, [prompt(codec)], SAMPLING, [3], [FRAMES])[0]
    heard = []
    for first, chunk in ((3, 5), (5, 12), (999, 999)):
        waves, codes, candidate = pieces(model, codec, Pace(first / codec.frame_rate, chunk / codec.frame_rate))
        np.testing.assert_array_equal(codes, plain.codes)
        assert candidate.finished == plain.finished
        heard.append(np.concatenate(waves))
    for one, other in pairwise(heard):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_levels_of_a_piece_are_made_from_all_frames_so_far_and_stay() -> None:
    codec = small.Fsq()
    model, given = endless("ar+nar", codec), prompt(codec, prefix=4)
    greedy = SAMPLING.model_copy(update={"nar": LevelParams()})
    _, codes, _ = pieces(model, codec, Pace(0.1, 0.2), given, 25, greedy)  # 5 frames, then 10
    assert codes.shape == (codec.levels, 25)
    known = given.response
    for start, end in ((0, 5), (5, 15), (15, 25)):
        known = np.concatenate((known, codes[:, start:end]), axis=1)
        for level in range(1, codec.levels):
            packed = pack([replace(given, response=known, level=level, mode="level")], model.layout)
            with torch.no_grad():
                hidden = model.hidden(packed)[0, int(packed.response[0]) + 1 :]
            drawn = model.heads(hidden, level, [])[4 + start : 4 + end].argmax(-1)
            np.testing.assert_array_equal(codes[level, start:end], drawn.numpy())
    masked = np.full_like(known, codec.codes)
    masked[0], masked[:, :4] = known[0], given.response
    (at_once,) = fill_levels(model, [given], [masked], greedy, [0])
    assert (at_once != known).any(), "the frames behind a piece change nothing: the test proves nothing"


@pytest.mark.parametrize("name", ["mel", "encodec", "dac"])
def test_sound_comes_after_half_a_second_of_frames_at_most(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = CODECS[name]()
    steps = []
    real = streaming.Engine.step
    monkeypatch.setattr(streaming.Engine, "step", lambda self: steps.append(1) or real(self))
    model = endless("ar-depth", codec)
    spoken = draw(model, codec, prompt(codec), SAMPLING, 3, round(codec.frame_rate), Pace())
    wav, *_ = next(spoken)
    assert len(wav) > 0 and 1 < len(steps) + 1 <= 0.5 * codec.frame_rate


def test_a_stream_that_is_closed_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, engines = small.Fsq(), []
    real = streaming.Engine.add
    monkeypatch.setattr(streaming.Engine, "add", lambda self, *a: engines.append(weakref.ref(self)) or real(self, *a))
    spoken = draw(endless("ar-depth", codec), codec, prompt(codec), SAMPLING, 3, FRAMES, Pace())
    next(spoken)
    assert engines[0]() is not None
    spoken.close()
    gc.collect()
    assert engines[0]() is None


def test_the_shortest_speech_and_none_at_all() -> None:
    codec = small.encodec()
    model = endless("ar-depth", codec)
    waves, codes, candidate = pieces(model, codec, longest=1)
    assert codes.shape[1] == 1 and sum(map(len, waves)) == codec.hop and not candidate.finished
    model.heads.register_forward_hook(lambda _, __, logits: torch.arange(logits.shape[-1]).expand_as(logits) * 9.0)
    waves, codes, candidate = pieces(model, codec)
    assert [len(w) for w in waves] == [0] and codes.shape[1] == 0 and candidate.finished


def voice_of(kind: str, codec, tokenizer: Tokenizer | None = None, **settings) -> Voice:
    tokenizer = tokenizer or Tokenizer(["a", "b", "c", "d", "e", " "])
    config = VoiceConfig(
        model=model_config(kind), levels=codec.levels, codes=codec.codes, phones=len(tokenizer), codec=CodecConfig(),
        encode=EncodeConfig(), sampling=CAREFUL, language="en-us", with_stress=True, seconds_per_phone=0.1,
        prompt_seconds=1.0, residual=codec.residual, **settings,
    )  # fmt: skip
    return Voice(endless(kind, codec), config, tokenizer, codec)


def test_requests_follow_one_another_as_they_are_asked_for() -> None:
    voice, asked = voice_of("ar-depth", small.Fsq()), []

    def requests():
        for index, phones in enumerate(("abc", "de")):
            asked.append(index)
            yield Request(phones=tuple(phones), seed=index)

    chunks = []
    for chunk in stream(voice, requests()):
        assert asked == [0] if not any(c.final for c in chunks) else [0, 1]
        chunks.append(chunk)
    ends = np.cumsum([len(c.wav) / c.sample_rate for c in chunks])
    np.testing.assert_allclose([c.start for c in chunks], [0, *ends[:-1]], atol=1e-9)
    assert [bool(c.warnings) for c in chunks] == [c.final for c in chunks], "the tiny model never stops: it is told"
    assert sum(c.final for c in chunks) == 2 and "cut off after" in chunks[-1].warnings[0]
    alone = np.concatenate([c.wav for c in stream(voice, Request(phones=("d", "e"), seed=1))])
    first = next(i for i, c in enumerate(chunks) if c.final)
    np.testing.assert_array_equal(np.concatenate([c.wav for c in chunks[first + 1 :]]), alone)
    np.testing.assert_allclose(alone, voice.speak_batch([Request(phones=("d", "e"), seed=1)])[0].wav, atol=1e-6)


TEXT = "one two three, two one. three two three one two!"


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch):
    """Voices that never stop and know the sounds of TEXT; every check finds what it is told to, segment by segment."""
    wrong: list[list[Fault]] = []

    def faults(*_) -> list[Fault]:
        return wrong.pop(0) if wrong else []

    def along(model, rows) -> list[np.ndarray]:
        return [np.sort(np.arange(r.response.shape[1]) * len(r.text) // r.response.shape[1]) for r in rows]

    monkeypatch.setattr(segments, "faults_of_length", lambda *_: [])
    monkeypatch.setattr(segments, "faults_of_reading", faults)
    monkeypatch.setattr(segments, "read_along", along)
    sounds = Tokenizer.fit(phonemize(["one two three"], "en-us"))

    def make(kind: str = "ar-depth", **changes) -> Voice:
        voice = voice_of(kind, small.Fsq(), sounds, response_phones=12)
        endless = {"max_seconds": 0.5, "retries": 0, "candidates": 1} | changes
        voice.config = voice.config.model_copy(update={"sampling": CAREFUL.model_copy(update=endless)})
        return voice

    make.wrong = wrong
    return make


@pytest.mark.parametrize("kind, speed, context, pause", [
    ("ar-depth", 1.0, "none", 0.1), ("ar-depth", 0.8, "rolling", 0.0), ("v2-ar", 1.3, "rolling", 0.1),
    ("ar+nar", 1.0, "none", 0.0),
])  # fmt: skip
def test_a_text_of_several_segments_is_streamed_as_it_is_spoken(
    reader, kind: str, speed: float, context: str, pause: float
) -> None:
    long_text = LongTextConfig(context=context, context_seconds=0.6, clause_pause=pause, sentence_pause=2 * pause)
    voice, request = reader(kind, long_text=long_text), Request(TEXT, seed=3, speed=speed)
    audio = voice.speak_batch([request])[0]
    chunks = list(stream(voice, request, pace=Pace(0.1, 0.25)))
    codes, wav = np.concatenate([c.codes for c in chunks], axis=1), np.concatenate([c.wav for c in chunks])
    assert len(audio.segments) > 2 and len(chunks) > len(audio.segments)
    assert [c.final for c in chunks] == [False] * (len(chunks) - 1) + [True]
    shown = voice.model.layout.shown
    np.testing.assert_array_equal(codes[:shown], audio.codes[:shown])
    if kind != "ar+nar":  # whose levels above were drawn without the frames behind
        assert len(wav) == len(audio.wav)
        np.testing.assert_allclose(wav, audio.wav, atol=1e-5)


def test_rolling_context_reaches_a_stream(reader, monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes, real = [], streaming.draw
    monkeypatch.setattr(
        streaming, "draw", lambda m, c, sample, *a: prefixes.append(sample.response.shape[1]) or real(m, c, sample, *a)
    )
    for context in ("none", "rolling"):
        prefixes.clear()
        list(stream(reader(long_text=LongTextConfig(context=context, context_seconds=0.6)), Request(TEXT)))
        assert len(prefixes) > 2 and prefixes[0] == 0 and any(prefixes) == (context == "rolling")


def test_what_went_wrong_in_a_segment_is_told_at_its_end(reader) -> None:
    voice, left_out = reader(), [Fault("missing", "left out: /w ʌ n/")]
    reader.wrong[:] = [[], left_out]
    chunks = list(stream(voice, Request(TEXT)))
    told = [(i, w) for i, c in enumerate(chunks) for w in c.warnings]
    reader.wrong[:] = [[], left_out]
    assert [w for _, w in told] == voice.speak_batch([Request(TEXT)])[0].warnings
    assert len(told) == 1 and told[0][1].startswith("segment 2 (") and 0 < told[0][0] < len(chunks) - 1


def test_a_stream_is_as_fast_as_it_is_asked(reader) -> None:
    voice = reader()
    usual, slow, fast = (
        [c.wav for c in stream(voice, Request("one two", seed=1, speed=speed))] for speed in (1.0, 0.5, 2.0)
    )
    samples = sum(map(len, usual))
    assert sum(map(len, slow)) == 2 * samples and sum(map(len, fast)) == samples / 2
    assert len(slow) > 1, "it comes in pieces"


def test_what_a_stream_cannot_do_is_refused(reader) -> None:
    with pytest.raises(SpeechError, match="at a speed in place of a duration"):
        next(stream(reader(), Request("one two", duration=2.0)))
    with pytest.raises(SpeechError, match=r"stream without it \(sampling.beam null\)"):
        next(stream(reader(guidance=0.0, beam=BeamConfig()), Request("one two")))
    (chunk,) = stream(reader("v2-nar"), Request("one two", duration=0.4))
    assert len(chunk.wav) == pytest.approx(0.4 * chunk.sample_rate, rel=0.02)


def test_a_draft_drafts_for_a_stream_as_well(reader, monkeypatch: pytest.MonkeyPatch) -> None:
    voice, given = reader(), []
    plain = np.concatenate([c.wav for c in stream(voice, Request("one two", seed=2))])
    real = streaming.Engine
    monkeypatch.setattr(streaming, "Engine", lambda *a, draft=None: given.append(draft) or real(*a, draft=draft))
    voice.draft = endless("ar-depth", voice.codec)
    quick = voice.config.sampling.model_copy(update={"speculation": SpeculationConfig(draft=3)})
    drafted = np.concatenate([c.wav for c in stream(voice, Request("one two", seed=2), quick)])
    assert given == [voice.draft]
    np.testing.assert_allclose(drafted, plain, atol=1e-5)


def test_a_kind_that_draws_all_frames_at_once_gives_a_request_in_one_piece() -> None:
    voice = voice_of("v2-nar", small.Fsq())
    (chunk,) = stream(voice, Request(phones=("a", "b")))
    assert chunk.final and len(chunk.wav) == chunk.codes.shape[1] * voice.codec.hop > 0


@pytest.mark.parametrize("wrong", [{"first": 0}, {"chunk": -1}, {"chunk": float("nan")}, {"look_ahead": -0.1}])
def test_a_pace_that_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="stream"):
        Pace(**wrong)
