"""Speech editing: the rest is untouched, joins are not heard, every kind of voice edits or says why not."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import soundfile

from tests.generation.voices import recording, voice
from vall_e.cli import main
from vall_e.generation import edit as module
from vall_e.generation.ar import Candidate
from vall_e.generation.edit import FADE, REACH, edit
from vall_e.generation.planning import reseed
from vall_e.generation.splice import active_level, cross_fade, quietest, splice
from vall_e.generation.synthesize import SpeechError
from vall_e.models.packing import Sample

RATE = 22_050  # not the voice's
WAV = recording(1.6, RATE)
VOICES = [
    ("ar-depth", ("tts", "cse")),
    ("ar-depth", ("tts",)),
    ("ar+nar", ("tts", "cse")),
    ("nar-len", ("tts",)),
    ("nar-len", ("tts", "cse", "nse")),
    ("ar+nar-len", ("tts",)),
    ("v2-nar", ("tts",)),
]


def test_a_splice_keeps_all_but_the_fades_and_a_fade_keeps_the_power() -> None:
    rng = np.random.default_rng(0)
    base, piece = (rng.normal(size=n).astype(np.float32) for n in (1000, 400))
    out = splice(base, piece, 300, 500, 50, 80)
    assert len(out) == 300 + (400 - 130) + 500
    np.testing.assert_array_equal(out[:250], base[:250])
    np.testing.assert_array_equal(out[300:570], piece[50:320])
    np.testing.assert_array_equal(out[-420:], base[-420:])
    a, b = rng.normal(size=(2, 100_000)).astype(np.float32)
    assert np.square(cross_fade(a, b)).mean() == pytest.approx(1.0, abs=0.02)


def test_the_quietest_place_and_the_level_of_what_is_spoken() -> None:
    wav = np.ones(8000, dtype=np.float32)
    wav[4000:4400] = 0.01
    assert quietest(wav, np.array([1000, 4200, 6000]), 8000) == 1
    assert active_level(np.concatenate((np.full(8000, 0.5), np.zeros(80_000))), 8000) == pytest.approx(0.5)
    assert active_level(np.zeros(10, dtype=np.float32), 8000) == 0


@pytest.mark.parametrize(("kind", "tasks"), VOICES)
@pytest.mark.parametrize(("start", "end"), [(0.5, 0.9), (0.0, 0.4), (1.2, 1.6), (0.8, 0.8)])
def test_the_rest_is_untouched_and_joins_are_smooth(
    kind: str, tasks: tuple[str, ...], start: float, end: float
) -> None:
    """At the beginning, in the middle, at the end, and inserted."""
    found = edit(voice(kind, tasks), WAV, RATE, start, end, "one [two] three", seed=3)
    assert found.sample_rate == RATE and found.wav.dtype == np.float32
    first, last = round(found.start * RATE), round(found.end * RATE)
    slack = (REACH + FADE + 0.02) * RATE
    assert start * RATE - slack <= first <= start * RATE + 1
    behind = len(found.wav) - last
    assert len(WAV) - end * RATE - slack <= behind <= len(WAV) - end * RATE + 1
    np.testing.assert_array_equal(found.wav[:first], WAV[:first])
    np.testing.assert_array_equal(found.wav[last:], WAV[len(WAV) - behind :])
    steps, bound = np.abs(np.diff(found.wav)), np.quantile(np.abs(np.diff(WAV)), 0.999)
    for join in {first, last} - {0, len(found.wav)}:
        assert steps[join - 2 : join + 1].max() <= bound
    assert any("never learned cse" in w for w in found.warnings) == (kind == "ar-depth" and "cse" not in tasks)


@pytest.mark.parametrize(("kind", "tasks"), VOICES)
def test_a_voice_reads_what_it_has_learned_to_read(kind: str, tasks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    """``cse`` where it was learned, given codes where it demasks, else the beginning as a prefix."""
    asked: list[tuple[Sample, np.ndarray | None]] = []
    inner = module.respond

    def respond(model: object, prompts: list[Sample], *args: object, given: list | None = None, **more: object) -> list:
        asked.append((prompts[0], None if given is None else given[0]))
        return inner(model, prompts, *args, given=given, **more)

    monkeypatch.setattr(module, "respond", respond)
    speaker = voice(kind, tasks)
    once = speaker.config.sampling.with_(retries=0)
    found = edit(speaker, WAV, RATE, 0.5, 0.9, "one [two] three", seed=3, sampling=once)
    ((sample, given),) = asked
    whole, until = (len(speaker.ids(speaker.phones([t], "en-us")[0])) for t in ("one two three", "one two"))
    assert len(sample.text) == (until if not _knows(kind, tasks) else whole)
    if "cse" in tasks:
        assert sample.task == "cse" and given is None and set(sample.more) == {"before", "middle", "after"}
        assert all(codes.shape[1] for codes in sample.more.values())
    elif _knows(kind, tasks):
        assert sample.task == "tts"
        blank = (given == speaker.model.layout.codes).all(0)
        assert blank.sum() == found.codes.shape[1] > 0
        assert np.ptp(np.flatnonzero(blank)) + 1 == blank.sum() and not blank[0] and not blank[-1]
    else:
        assert sample.task == "tts" and given is None and sample.response.shape[1] > 0


def _knows(kind: str, tasks: tuple[str, ...]) -> bool:
    return "cse" in tasks or kind in ("nar-len", "ar+nar-len", "v2-nar")


def _request(text: str):
    from vall_e.generation.synthesize import Request

    return Request(text=text)


@pytest.mark.parametrize("kind", ["nar-len", "v2-nar"])
def test_the_new_part_is_as_long_as_it_was_asked_to_be(kind: str) -> None:
    speaker = voice(kind)
    for seconds in (0.2, 0.6):
        found = edit(speaker, WAV, RATE, 0.5, 0.9, "one [two] three", seconds=seconds)
        assert found.codes.shape[1] == round(seconds * speaker.codec.frame_rate)


def test_the_new_part_is_as_loud_as_what_is_around_it() -> None:
    for gain in (1.0, 0.1):
        found = edit(voice("nar-len"), gain * WAV, RATE, 0.5, 0.9, "one [two] three", seconds=0.5)
        first, last = (round(s * RATE) for s in (found.start + FADE, found.end - FADE))
        around = active_level(np.concatenate((WAV[: round(0.45 * RATE)], WAV[RATE:])), RATE) * gain
        assert active_level(found.wav[first:last], RATE) == pytest.approx(around, rel=0.25)


def test_of_a_long_recording_the_model_hears_a_window() -> None:
    long, speaker = recording(9.0, RATE), voice("nar-len", seconds=1.0)
    seen = []
    encode = type(speaker.codec).encode
    watched = replace_codec(speaker, lambda codec, wav: seen.append(wav.shape[-1]) or encode(codec, wav))
    found = edit(watched, long, RATE, 5.0, 5.3, "one [two] three")
    assert max(seen) <= 1.35 * speaker.sample_rate
    assert any("heard" in warning for warning in found.warnings)
    behind = len(found.wav) - round(found.end * RATE)
    np.testing.assert_array_equal(found.wav[-behind:], long[-behind:])
    np.testing.assert_array_equal(found.wav[: round(found.start * RATE)], long[: round(found.start * RATE)])


def replace_codec(speaker, encode):
    class Codec:
        def __getattr__(self, name: str):
            return getattr(speaker.codec, name)

        def encode(self, wav):
            return encode(speaker.codec, wav)

    return type(speaker)(speaker.model, speaker.config, speaker.tokenizer, Codec())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"start": 0.9, "end": 0.5}, "not in order"),
        ({"end": 3.0}, r"recording of 1\.60 s"),
        ({"text": "one two three"}, "mark them with brackets"),
        ({"text": "one [two] [three]"}, "one pair of brackets"),
        ({"text": " "}, "nothing to say"),
        ({"seconds": 0.0}, "more than 0"),
        ({"text": "one [] three", "start": 0.5, "end": 0.5}, "no new words in 'one \\[\\] three'"),
        ({"text": "one [ ] three", "start": 0.0, "end": len(WAV) / RATE}, "leave something"),
        ({"text": "one [] three", "seconds": 0.5}, "without a length"),
        ({"wav": np.zeros(RATE, dtype=np.float32), "end": 0.8}, "holds no sound"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_the_reason(changes: dict, reason: str) -> None:
    asked = {"wav": WAV, "rate": RATE, "start": 0.5, "end": 0.9, "text": "one [two] three"} | changes
    with pytest.raises(SpeechError, match=reason):
        edit(voice("ar-depth"), **asked)


def test_the_same_seed_says_the_same_and_no_brackets_are_needed_where_both_sides_are_known() -> None:
    a, b, c = (edit(voice("v2-nar"), WAV, RATE, 0.5, 0.9, "one two three", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.wav, b.wav)
    assert a.wav.shape != c.wav.shape or (a.wav != c.wav).any()


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_the_command_leaves_the_rest_of_the_file_as_it_is(subtype: str, tmp_path, capsys, monkeypatch) -> None:
    import vall_e.edit_cli as cli

    monkeypatch.setattr(cli, "load_voice", lambda arguments: voice("v2-nar"))
    source, out = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(
        source, 3.0 * WAV, RATE, subtype=subtype
    )  # loud: 16 bits read and written with other factors differ
    arguments = ["edit", str(source), "--start", "0.5", "--end", "0.9", "--text", "one [two] three", "-o", str(out)]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    old, new = (soundfile.read(path, dtype="int32")[0] for path in (source, out))
    first, behind = round(found["new_from"] * RATE) - 40, len(new) - round(found["new_to"] * RATE) - 40
    if subtype == "PCM_24":  # kept as 32-bit float
        old, new = (soundfile.read(path, dtype="float32")[0] for path in (source, out))
    np.testing.assert_array_equal(new[:first], old[:first])
    np.testing.assert_array_equal(new[-behind:], old[-behind:])
    assert main(["edit", str(source), "--start", "5", "--end", "6", "--text", "one", "-o", str(out)]) == 1
    assert "not in order" in capsys.readouterr().err


def test_the_channels_of_a_recording_become_one_and_that_is_told(tmp_path) -> None:
    both, text = np.stack((WAV, 0.5 * WAV), axis=1), "one [two] three"
    soundfile.write(tmp_path / "in.wav", both, RATE, subtype="FLOAT")
    speaker = voice("v2-nar")
    found = [speaker.edit(source, 0.5, 0.9, text) for source in (tmp_path / "in.wav", (both, RATE), (WAV, RATE))]
    assert [[w for w in f.warnings if "channels" in w] for f in found] == [["the 2 channels became one"]] * 2 + [[]]
    np.testing.assert_array_equal(found[0].wav, found[1].wav)


def test_the_command_pours_raw_samples_out(tmp_path, capfdbinary, monkeypatch) -> None:
    import vall_e.edit_cli as cli

    monkeypatch.setattr(cli, "load_voice", lambda arguments: voice("v2-nar"))
    monkeypatch.chdir(tmp_path)
    soundfile.write("in.wav", 3.0 * WAV, RATE, subtype="PCM_16")
    arguments = ["edit", "in.wav", "--start", "0.5", "--end", "0.9", "--text", "one [two] three"]
    assert main([*arguments, "-o", "-", "--json"]) == 2
    assert b"--json and -o - both" in capfdbinary.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(os.dup(1), "w"))
        assert main([*arguments, "-o", "-"]) == 0
    printed = capfdbinary.readouterr()
    assert b"s16le at 22050 Hz" in printed.err and not (tmp_path / "-").exists()
    assert main([*arguments, "-o", "out.wav"]) == 0
    np.testing.assert_array_equal(np.frombuffer(printed.out, dtype="<i2"), soundfile.read("out.wav", dtype="int16")[0])


@pytest.mark.parametrize("text", ["one [] three", "one [ ] three", "one [, ] three"])
@pytest.mark.parametrize(("start", "end"), [(0.5, 0.9), (0.0, 0.4), (1.2, len(WAV) / RATE)])
def test_empty_brackets_take_words_out_and_say_nothing(text: str, start: float, end: float) -> None:
    found = edit(voice("ar-depth"), WAV, RATE, start, end, text)
    assert found.warnings == [] and found.codes.shape[1] == 0
    gone = len(WAV) - len(found.wav)
    assert 0 <= gone - (end - start) * RATE <= 2 * REACH * RATE + 2
    first, last = round(found.start * RATE), round(found.end * RATE)
    assert last - first <= FADE * RATE + 1
    np.testing.assert_array_equal(found.wav[:first], WAV[:first])
    np.testing.assert_array_equal(found.wav[last:], WAV[last + gone :])
    steps = np.abs(np.diff(found.wav[max(0, first - 1) : last + 1]))
    assert steps.max(initial=0.0) <= 1.5 * np.abs(np.diff(WAV)).max()


def _says(monkeypatch: pytest.MonkeyPatch, *answers: Candidate | list[Candidate]) -> list[int]:
    """Let the model say these, one after the other, the last one again and again; returns the seeds it was asked."""
    seeds: list[int] = []

    def respond(model, prompts, sampling, asked, longest, choose, frames, given) -> list:
        answer = answers[min(len(seeds), len(answers) - 1)]
        seeds.extend(asked)
        chosen = choose(answer if isinstance(answer, list) else [answer], prompts[0])
        return [(chosen, chosen.codes)]

    monkeypatch.setattr(module, "respond", respond)
    return seeds


def _said(frames: int = 12, finished: bool = True, score: float = 0.0) -> Candidate:
    return Candidate(np.random.default_rng(1).integers(32, size=(2, frames)), finished, score)


LOOP = Candidate(np.full((2, 110), 7), True, 5.0)


@pytest.mark.parametrize("bad, told", [
    (LOOP, "the same 0.02 s again and again"),
    (_said(8, finished=False), "the model did not stop by itself"),
    (_said(200), "for what takes"),
    (_said(0), "the model said nothing"),
])  # fmt: skip
def test_a_new_part_with_a_fault_is_drawn_anew_and_what_is_left_is_told(monkeypatch, bad, told) -> None:
    speaker, good = voice("ar-depth", ("tts", "cse")), _said()
    asked = (speaker, WAV, RATE, 0.5, 0.9, "one [two] three")
    tries = speaker.config.sampling.with_(retries=2)
    seeds = _says(monkeypatch, bad, good)
    found = edit(*asked, seed=3, sampling=tries)
    assert seeds == [3, reseed(3, 1)] and found.warnings == []
    np.testing.assert_array_equal(found.codes, good.codes)
    seeds = _says(monkeypatch, bad)
    found = edit(*asked, seed=3, sampling=tries)
    assert seeds == [3, reseed(3, 1), reseed(3, 2)] and sum(told in w for w in found.warnings) == 1
    for changes in ({"retries": 0}, {"ar.temperature": 0.0}):
        seeds = _says(monkeypatch, bad, good)
        assert any(told in w for w in edit(*asked, sampling=tries.with_(**changes)).warnings) and len(seeds) == 1


def test_a_silent_new_part_is_drawn_anew(monkeypatch) -> None:
    speaker, good = voice("ar-depth", ("tts", "cse")), _said()
    mute = type(speaker)(speaker.model, speaker.config, speaker.tokenizer, speaker.codec)
    monkeypatch.setattr(mute, "to_wave", lambda codes: speaker.to_wave(codes) * (1e-6 if codes.shape[1] == 11 else 1.0))
    seeds = _says(monkeypatch, _said(11), good)
    found = edit(mute, WAV, RATE, 0.5, 0.9, "one [two] three")
    assert len(seeds) == 2 and found.codes.shape[1] == 12 and found.warnings == []
    _says(monkeypatch, _said(11))
    assert "the new part: silent throughout" in edit(mute, WAV, RATE, 0.5, 0.9, "one [two] three").warnings


def test_a_candidate_of_a_new_part_that_loops_loses_against_one_that_does_not(monkeypatch) -> None:
    good = _said()
    seeds = _says(monkeypatch, [LOOP, good])
    found = edit(voice("ar-depth", ("tts", "cse")), WAV, RATE, 0.5, 0.9, "one [two] three")
    assert len(seeds) == 1 and found.warnings == []
    np.testing.assert_array_equal(found.codes, good.codes)


def test_of_a_demasked_edit_only_what_is_new_is_judged() -> None:
    """What is around it may be silent and loop."""
    speaker, long = voice("v2-nar", seconds=6.0), np.concatenate((WAV, np.zeros(2 * RATE, dtype=np.float32)))
    found = edit(speaker, long, RATE, 0.5, 0.9, "one [two] three", seconds=0.4)
    assert found.warnings == [] and found.codes.shape[1] == round(0.4 * speaker.codec.frame_rate)
