"""``Voice``: the public interface, long text, retries. A tiny voice with random weights speaks."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys

import numpy as np
import pytest

from tests.generation.voices import recording
from tests.generation.voices import voice as small_voice
from tests.test_cli import make_voice
from tests.test_jobs import tone
from vall_e import Audio, Request, SamplingConfig, SpeechError, Voice
from vall_e.generation import planning, segments, sounds
from vall_e.generation.ar import Candidate
from vall_e.generation.convert import convert, separate
from vall_e.generation.edit import edit
from vall_e.generation.speech import one_channel
from vall_e.text.tokenizer import UnknownPhoneError

LONG = "one two three, two one. three three two one!\n\none two, three"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_voice(tmp_path_factory.mktemp("models") / "voice")


@pytest.fixture(scope="module")
def voice(folder):
    return Voice.load(folder, "cpu")


@pytest.fixture(scope="module")
def prompt():
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(12_800) / 16_000)).astype(np.float32)


def settings(voice, **changes) -> SamplingConfig:
    return voice.config.sampling.model_copy(update={"retries": 0} | changes)


def fixed(monkeypatch, codes_of, finished=lambda seed: True):
    """Let the voice say ``codes_of(seed)`` int64 [L, T] whatever it is asked; returns the batches that it was asked."""
    asked = []

    def respond(model, samples, sampling, seeds, limits, choose, progress=None, frames=None, draft=None):
        asked.append((list(samples), list(seeds), list(limits), frames))
        out = []
        for sample, seed in zip(samples, seeds, strict=True):
            candidate = choose([Candidate(codes_of(seed), finished(seed), 0.0)], sample)
            out.append((candidate, candidate.codes))
        return out

    monkeypatch.setattr(segments, "respond", respond)
    return asked


def noise(seed: int, frames: int = 20) -> np.ndarray:
    return np.random.default_rng(seed % 1000).integers(32, size=(2, frames))


def test_the_example_of_the_documentation_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/voice").symlink_to(folder)
    tone(tmp_path / "reference.wav", 0.8)
    fixed(monkeypatch, noise)
    monkeypatch.setattr(segments, "faults_of_reading", lambda *_: [])  # random weights read nothing
    example = doctest.DocTestFinder().find(Voice, "Voice", globs={})[0]
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
    assert (tmp_path / "speech.wav").is_file()


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, vall_e; print({'torch', 'numpy', 'pydantic'} & set(sys.modules), hasattr(vall_e, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["set()", "False"]


def test_a_file_and_its_samples_at_any_rate_are_the_same_prompt(voice, tmp_path, prompt):
    import soundfile

    path = tmp_path / "ref.wav"
    soundfile.write(path, prompt, 16_000, subtype="FLOAT")
    plain = settings(voice)
    by_file, by_samples = (voice.speak("one two", p, seed=4, sampling=plain) for p in (path, (prompt, 16_000)))
    np.testing.assert_array_equal(by_file.codes, by_samples.codes)
    again = voice.speak_batch([Request("one two", prompt, seed=4)], plain)[0]
    np.testing.assert_array_equal(by_file.wav, again.wav)
    assert isinstance(again, Audio) and again.seconds == len(again.wav) / 16_000
    assert again.timings.decode > 0 and again.timings.tokens_per_second > 0
    for bad in ((np.zeros(16_000), 16_000), (np.full(16_000, np.nan), 16_000), (prompt[:100], 16_000)):
        with pytest.raises(SpeechError, match="silent|finite|too short"):
            voice.speak("one", bad)


@pytest.mark.parametrize("kind, full", [(np.int16, 2**15), (np.int32, 2**31), (np.float64, 1)])
def test_samples_of_several_channels_and_integers_are_read_as_one_channel(voice, prompt, kind, full):
    left, right = (np.round(prompt * 2**15) / 2**15 * full).astype(kind), np.zeros(len(prompt), kind)
    mean = np.round(prompt * 2**15).astype(np.float32) / 2**16
    np.testing.assert_array_equal(one_channel(np.stack((left, right), axis=1)), mean)
    np.testing.assert_array_equal(one_channel(left[None]), 2 * mean)
    np.testing.assert_array_equal(one_channel(left.tolist() if kind is np.float64 else left), 2 * mean)
    codes, _ = voice.prompt_codes(np.stack((left, left), axis=1))
    np.testing.assert_array_equal(codes, voice.prompt_codes(2 * mean)[0])


def test_bytes_are_around_128_and_samples_that_could_mean_anything_are_refused(voice, prompt):
    assert one_channel(np.array([0, 128, 192], np.uint8)).tolist() == [-1.0, 0.0, 0.5]
    for bad, reason in (
        (np.stack((prompt, prompt)), r"shape \[2, 12800\]: give \[N\] or \[N, channels\]"),
        (np.zeros((9, 3, 2)), "shape"), (np.arange(9), "type int64: give floats"), (prompt > 0, "type bool"),
    ):  # fmt: skip
        with pytest.raises(SpeechError, match=reason):
            voice.speak("one", (bad, 16_000))


def test_long_text_is_spoken_in_segments_that_are_each_what_they_are_alone(voice, prompt):
    plain = settings(voice)
    audio, short = voice.speak_batch([Request(LONG, prompt, seed=5), Request("two", prompt, seed=6)], plain)
    assert " ".join(s.text for s in audio.segments).split() == LONG.split()
    assert len(audio.segments) >= 4 and len(short.segments) == 1
    np.testing.assert_array_equal(short.codes, voice.speak("two", (prompt, 16_000), seed=6, sampling=plain).codes)
    alone = voice.speak(LONG, (prompt, 16_000), seed=5, sampling=plain)
    np.testing.assert_array_equal(audio.codes, alone.codes)
    first = voice.speak(audio.segments[0].text, (prompt, 16_000), seed=5, sampling=plain)
    np.testing.assert_array_equal(first.codes, audio.codes[:, : first.frames])
    starts = [s.start for s in audio.segments]
    assert starts == sorted(starts) and audio.segments[-1].end == pytest.approx(audio.seconds)


def test_pauses_are_those_of_the_punctuation(voice, prompt, monkeypatch):
    fixed(monkeypatch, noise)
    plain = settings(voice)
    pauses = plain.long_text.model_copy(update={"clause_pause": 0.2, "sentence_pause": 0.5, "paragraph_pause": 0.9})
    text = "one two three. three two one, two three one!\n\none two three two one"
    audio = voice.speak(text, (prompt, 16_000), sampling=plain.model_copy(update={"long_text": pauses}))
    expected = [{",": 0.2, ".": 0.5, "!": 0.9}.get(s.text[-1], 0.0) for s in audio.segments[:-1]]
    gaps = [b.start - a.end for a, b in zip(audio.segments, audio.segments[1:], strict=False)]
    assert set(expected) == {0.0, 0.2, 0.5, 0.9}
    for gap, pause in zip(gaps, expected, strict=True):
        assert gap == pytest.approx(pause - 0.02 if pause else -0.01, abs=0.002)


def test_rolling_context_goes_on_from_the_last_words_of_the_segment_before(voice, prompt, monkeypatch):
    asked = fixed(monkeypatch, noise)
    monkeypatch.setattr(segments, "faults_of_reading", lambda *_: [])
    monkeypatch.setattr(segments, "read_along", lambda model, rows: [
        np.sort(np.arange(r.response.shape[1]) * len(r.text) // r.response.shape[1]) for r in rows])  # fmt: skip
    plain = settings(voice)
    rolling = plain.long_text.model_copy(update={"context": "rolling", "context_seconds": 0.4})
    audio = voice.speak(LONG, (prompt, 16_000), seed=1, sampling=plain.model_copy(update={"long_text": rolling}))
    assert len(asked) == len(audio.segments) > 3 and all(len(samples) == 1 for samples, *_ in asked)
    rows = [samples[0] for samples, *_ in asked]
    assert rows[0].response.shape[1] == 0
    gap = voice.ids([" "])[0]
    for i in range(1, len(rows)):
        prefix = rows[i].response
        said = audio.codes[:, : 20 * i]
        assert 0 < prefix.shape[1] <= 20
        np.testing.assert_array_equal(prefix, said[:, -prefix.shape[1] :])
        own = voice.ids(voice.phones([audio.segments[i].text], "en-us")[0])
        before = rows[i].text[: -len(own)]
        np.testing.assert_array_equal(rows[i].text[-len(own) :], own)
        assert before[-1] == gap
        words = rows[i - 1].text.tolist()
        assert words[-len(before) + 1 :] == before[:-1].tolist() and len(before) > 1
    assert audio.frames == 20 * len(rows)  # what is gone on from is not said again


def test_a_text_whose_end_was_not_spoken_is_reported_with_its_segment(voice, prompt, monkeypatch):
    asked = fixed(monkeypatch, noise, finished=lambda seed: len(asked) > 1 or seed != asked[0][1][1])
    audio = voice.speak(LONG, (prompt, 16_000), seed=1, sampling=settings(voice, retries=0))
    cut = [w for w in audio.warnings if "cut off" in w]
    assert len(cut) == 1 and cut[0].startswith(f"segment 2 ({audio.segments[1].text!r}): cut off after 0.4 s")
    assert not audio.segments[1].finished


def test_a_segment_with_a_fault_is_drawn_anew_and_the_best_attempt_is_kept(voice, prompt, monkeypatch):
    monkeypatch.setattr(segments, "faults_of_reading", lambda *_: [])
    good: set[int] = set()
    asked = fixed(monkeypatch, noise, finished=lambda seed: seed in good)
    three = settings(voice, retries=3)
    request = Request(LONG, prompt, seed=1)
    bad = voice.speak_batch([request], three)[0]
    count = len(bad.segments)
    assert [len(seeds) for _, seeds, *_ in asked] == [count] * 4  # everything is wrong: all attempts are made
    assert len(bad.warnings) == count and len({s for _, seeds, *_ in asked for s in seeds}) == 4 * count
    second = asked[1][1]
    good |= {*asked[0][1][1:], second[0]}
    asked.clear()
    audio = voice.speak_batch([request], three)[0]
    assert [len(seeds) for _, seeds, *_ in asked] == [count, 1] and audio.warnings == []
    np.testing.assert_array_equal(audio.codes[:, :20], noise(second[0]))
    np.testing.assert_array_equal(audio.codes[:, 20:40], noise(asked[0][1][1]))


def test_left_to_right_a_duration_and_a_speed_stretch_what_was_spoken(voice, prompt, monkeypatch):
    asked = fixed(monkeypatch, noise)
    monkeypatch.setattr(segments, "faults_of_reading", lambda *_: [])
    plain = settings(voice, max_seconds=9.0)
    usual = voice.speak_batch([Request("one two three", prompt)], plain)[0]
    for how, seconds in (({"duration": 0.6}, 0.6), ({"speed": 2.0}, 0.2), ({"speed": 0.5}, 0.8)):
        audio = voice.speak_batch([Request("one two three", prompt, **how)], plain)[0]
        assert asked[-1][2:] == asked[0][2:] and asked[-1][3] == [None], "it is drawn at the voice's own pace"
        np.testing.assert_array_equal(audio.codes, usual.codes)
        assert len(audio.wav) == round(seconds * 16_000) and audio.warnings == []
        assert audio.segments[-1].end == seconds
    audio = voice.speak("one two three", (prompt, 16_000), duration=1.0, sampling=plain)
    assert any("0.80 s, where 1.00 s were asked for" in w for w in audio.warnings)
    long = voice.speak(LONG, (prompt, 16_000), duration=4.0, sampling=plain)
    assert len(long.segments) > 3 and long.seconds == pytest.approx(4.0, rel=0.03) and long.warnings == []
    with pytest.raises(SpeechError, match=r"left to right.*between 0.5 and 2, not 4"):
        voice.speak("one", (prompt, 16_000), speed=4.0)


@pytest.mark.parametrize("kind", ["ar-depth", "nar-len"])
def test_a_duration_or_speed_that_cannot_be_is_refused(kind):
    voice = small_voice(kind)
    for duration in (3600.0, 1e9, 1e308, 0.01):
        with pytest.raises(SpeechError, match=r"a duration of .* cannot be: .* give 0\.\d+ to 3\.\d+ s"):
            voice.speak_batch([Request("one two three", duration=duration)])
    with pytest.raises(SpeechError, match="both say"):
        Request("a", duration=1.0, speed=2.0)
    for wrong in ({"duration": 0.0}, {"duration": float("nan")}, {"speed": 9.0}, {"speed": 0.0}):
        with pytest.raises(SpeechError, match="not"):
            Request("a", **wrong)
    with pytest.raises(SpeechError, match="pauses alone"):
        voice.speak_batch([Request("one, " * 40, duration=0.3)])


def test_demasking_draws_as_fast_as_it_is_asked_and_slow_segments_hold_less(monkeypatch):
    voice, text = small_voice("nar-len"), "one two three two one " * 6
    monkeypatch.setattr("vall_e.generation.duration.predict_frames", lambda model, prompts, most: [12] * len(prompts))
    plain = settings(voice, candidates=1)
    for how, frames in (
        ({}, 12),
        ({"speed": 1.01}, 12),
        ({"speed": 0.9}, 13),
        ({"speed": 2.0}, 6),
        ({"duration": 1}, 50),
    ):
        audio = voice.speak_batch([Request("one two three", **how)], plain)[0]
        assert audio.frames == frames and len(audio.wav) == frames * voice.codec.hop
    trained = voice.config.longest_text * voice.config.seconds_per_phone
    usual, _ = planning.plan(voice, 0, Request(text), plain)
    usual = sum(piece.seconds for piece in usual)
    for how, times in (({"speed": 0.25}, 4), ({"speed": 0.5}, 2), ({"duration": 3 * usual}, 3)):
        pieces, _ = planning.plan(voice, 0, Request(text, **how), plain)
        assert max(piece.seconds for piece in pieces) <= trained + 1e-6
        assert sum(piece.seconds for piece in pieces) == pytest.approx(
            times * usual, rel=0.25
        )  # gaps between words count


def test_a_reference_that_is_cut_is_told(voice):
    short, long = recording(0.8), recording(3.0)
    assert not any("reference" in w for w in voice.speak("one", (short, 16_000), sampling=settings(voice)).warnings)
    audio = voice.speak("one", (long, 16_000), sampling=settings(voice))
    assert any("s of reference the first 1.00 s count" in w for w in audio.warnings)


def test_a_reference_to_go_on_from_is_cut_with_its_text(voice, monkeypatch):
    long = recording(3.0)
    request = Request("two", long, "one two three two one", continue_prompt=True)
    phones = voice.phones([request.prompt_text], "en-us")[0]
    of_two = len(voice.phones(["one two"], "en-us")[0])

    def read(model, rows):
        (row,) = rows
        assert row.response.shape[1] == 50
        np.testing.assert_array_equal(row.text, voice.ids(phones))
        return [np.minimum(np.arange(50) // 4, of_two + 1)]  # "three" has begun where the recording is cut

    monkeypatch.setitem(voice.model._modules, "alignment", None)
    with pytest.raises(SpeechError, match=r"no alignment head.*shorter recording"):
        voice.speak_batch([request])
    monkeypatch.undo()
    monkeypatch.setattr(planning, "read_along", read)
    pieces, warnings = planning.plan(voice, 0, request, settings(voice))
    assert pieces[0].before == (*phones[:of_two], " ")
    assert pieces[0].prefix.shape[1] == pieces[0].prompt.shape[1] == 4 * of_two
    assert "up to 'one two'" in warnings[-1]
    monkeypatch.setattr(planning, "read_along", lambda model, rows: [np.zeros(50, dtype=np.int64)])
    with pytest.raises(SpeechError, match="no word was found to end there"):
        planning.plan(voice, 0, request, settings(voice))
    whole = Request("two", long[:12_800], request.prompt_text, continue_prompt=True)
    assert planning.plan(voice, 0, whole, settings(voice))[0][0].before == (*phones, " ")


def test_a_recogniser_chooses_where_it_is_asked_to(voice, prompt):
    class Longest:
        def errors(self, waves, rate, text, language):
            assert (rate, text, language) == (16_000, "one two", "en-us")
            heard.append([len(w) for w in waves])
            return [1 / (1 + len(w)) for w in waves]

    heard: list[list[int]] = []
    by_ear = settings(
        voice, rank="recogniser", candidates=4, ar=voice.config.sampling.ar.model_copy(update={"temperature": 2.0})
    )
    with pytest.raises(SpeechError, match="needs a recogniser"):
        voice.speak("one two", (prompt, 16_000), sampling=by_ear)
    judged = Voice(voice.model, voice.config, voice.tokenizer, voice.codec, Longest())
    audio = judged.speak("one two", (prompt, 16_000), sampling=by_ear)
    assert len(heard) == 1 and len(heard[0]) == 4 and len(audio.wav) == max(heard[0])


def test_progress_grows_to_one_and_a_format_of_weights_is_checked(voice, folder, prompt):
    shares: list[float] = []
    voice.speak(LONG, (prompt, 16_000), sampling=settings(voice), progress=shares.append)
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] == 1.0
    assert Voice.load(folder, "cpu", weights="bfloat16").speak("one", sampling=settings(voice)).frames > 0
    with pytest.raises(ValueError, match="no weight format 'int3'"):
        Voice.load(folder, "cpu", weights="int3")


def test_nothing_is_drawn_anew_where_it_would_come_out_the_same(voice, prompt, monkeypatch):
    asked = fixed(monkeypatch, noise, finished=lambda seed: False)
    for ar, batches in (({"temperature": 0.0}, 1), ({"temperature": 0.8}, 3)):
        asked.clear()
        greedy = SamplingConfig(ar=ar, retries=2, candidates=1, max_seconds=0.4)
        assert voice.speak_batch([Request("one", prompt)], greedy)[0].warnings and len(asked) == batches


def test_a_candidate_that_loops_loses_against_one_that_does_not(voice, prompt, monkeypatch):
    monkeypatch.setattr(segments, "faults_of_reading", lambda *_: [])
    loop, clean = Candidate(np.full((2, 100), 7), True, 2.0), Candidate(noise(1, 100), True, 0.0)

    def respond(model, samples, sampling, seeds, limits, choose, *_, **__):
        chosen = [choose([loop, clean], sample) for sample in samples]
        return [(candidate, candidate.codes) for candidate in chosen]

    monkeypatch.setattr(segments, "respond", respond)
    audio = voice.speak_batch([Request("one two three one two", prompt)], settings(voice))[0]
    np.testing.assert_array_equal(audio.codes, clean.codes)
    assert not any("again and again" in warning for warning in audio.warnings)


def test_words_in_letters_of_another_language_are_refused(voice, prompt, monkeypatch):
    for text in ("one привет two", "one 你好 two", "one. two. привет."):
        with pytest.raises(SpeechError, match="not in letters that en-us is written in"):
            voice.speak_batch([Request(text, prompt)])


@pytest.mark.parametrize("text, words", [
    ("one 12, two", r"'twelve' \(of '12'\) has the sounds ˈɛ l v"),
    ("one xyzzy two", r"'xyzzy' has the sounds? .*"),
    ("$5.50", r"segment 1 \('\$'\): 'five' \(of '\$5.50'\) has the sounds .*"),
    ("one two three, two one. three two five!", r"segment \d \('three two five!'\): 'five' has the sound.*"),
])  # fmt: skip
def test_an_unknown_sound_names_the_word_that_has_it(voice, prompt, text, words):
    with pytest.raises(UnknownPhoneError, match=f"^{words}, which this voice never heard: use other words"):
        voice.speak_batch([Request(text, prompt)])


def test_an_unknown_sound_of_no_word_alone_and_of_phones_is_told_by_itself(voice, prompt, monkeypatch):
    with pytest.raises(UnknownPhoneError, match="never saw the phones 'ʒ'"):
        voice.speak_batch([Request(phones=["w", "ʒ"], prompt=prompt)])
    monkeypatch.setattr(sounds, "phonemize", lambda words, *_: [["w"] for _ in words])
    with pytest.raises(UnknownPhoneError, match="never saw the phones"):
        voice.speak_batch([Request("one five", prompt)])


def test_an_unknown_sound_of_a_reference_or_an_edit_names_the_word_too(voice, prompt):
    with pytest.raises(UnknownPhoneError, match="^the reference's text: 'five' has the sound"):
        voice.speak_batch([Request("one", prompt, prompt_text="two five", continue_prompt=True)])
    with pytest.raises(UnknownPhoneError, match="^'five' has the sound"):
        voice.edit((prompt, 16_000), 0.2, 0.4, "one [five] two")


@pytest.mark.parametrize("name, within", [("edit", edit), ("convert", convert), ("separate", separate)])
def test_what_changes_a_recording_names_its_options(name, within):
    """Those of the function behind it, with its defaults, but for the rate that a recording brings."""
    shown, inner = (dict(inspect.signature(f).parameters) for f in (getattr(Voice, name), within))
    kinds = {p.kind for p in shown.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert list(shown)[2:] == [n for n in inner if n != "rate"][2:]
    assert all(shown[n].default == inner[n].default for n in list(shown)[2:])
