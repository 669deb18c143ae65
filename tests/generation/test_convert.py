"""Voice conversion and what is taken out of a mixture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from tests.generation.voices import recording, voice
from vall_e.cli import main
from vall_e.generation import recording as shared
from vall_e.generation.ar import Candidate
from vall_e.generation.convert import convert, separate
from vall_e.generation.recording import encode, pieces
from vall_e.generation.respond import respond
from vall_e.generation.synthesize import SpeechError

SOURCE, REFERENCE = recording(1.3), recording(0.8, seed=1, pitch=210.0)
MASKED = ["nar-len", "ar+nar-len", "v2-nar"]


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("text", [None, "one two three"])
def test_no_mask_is_the_source_and_all_masks_are_demasking_from_nothing(
    kind: str, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker, n = voice(kind, ("tts", "vc")), voice(kind, ("tts", "vc")).model.layout.codes
    codes, gain = encode(speaker, SOURCE)
    kept = convert(speaker, SOURCE, REFERENCE, text, mask=0.0)
    np.testing.assert_array_equal(kept.codes, codes)
    np.testing.assert_allclose(kept.wav, (speaker.to_wave(codes) / gain)[: len(SOURCE)], atol=1e-5)

    asked: list = []
    monkeypatch.setattr(shared, "respond", lambda *args, **more: asked.append((args, more)) or respond(*args, **more))
    anew = convert(speaker, SOURCE, REFERENCE, text, mask=1.0, seed=5)
    ((args, more),) = asked
    assert args[1][0].task == ("tts" if text else "vc") and (more["given"][0] == n).all()
    plain = respond(*args, frames=[codes.shape[1]])[0][1]
    np.testing.assert_array_equal(anew.codes, plain)


@pytest.mark.parametrize("kind", MASKED)
def test_as_many_frames_are_made_anew_as_asked_up_to_the_end(kind: str) -> None:
    """The rest keeps the first pass's codes, in the last second as before it, and the length is the source's."""
    speaker = voice(kind, ("tts", "vc"))
    codes, _ = encode(speaker, SOURCE)
    shown, length = speaker.model.layout.shown, codes.shape[1]
    found = convert(speaker, SOURCE, REFERENCE, mask=0.4, seed=2)
    assert found.codes.shape == codes.shape and found.wav.shape == SOURCE.shape
    changed = (found.codes[:shown] != codes[:shown]).any(0)
    assert 0 < changed.sum() <= round(0.4 * length)
    assert found.codes.max() < speaker.model.layout.codes
    again = convert(speaker, SOURCE, REFERENCE, mask=0.4, seed=2)
    np.testing.assert_array_equal(found.wav, again.wav)


def test_what_cannot_be_converted_is_refused_with_the_reason() -> None:
    with pytest.raises(SpeechError, match="kind ar-depth cannot start from .* nar-len, ar"):
        convert(voice("ar-depth"), SOURCE, REFERENCE)
    with pytest.raises(SpeechError, match=r"not 1\.5"):
        convert(voice("nar-len"), SOURCE, REFERENCE, mask=1.5)
    with pytest.raises(SpeechError, match="holds no sound"):
        convert(voice("nar-len"), np.zeros(8000, dtype=np.float32), REFERENCE)
    with pytest.raises(SpeechError, match="a sentence at a time"):
        convert(voice("nar-len", seconds=1.0), SOURCE, REFERENCE, "one two three")
    assert "never learned vc" in convert(voice("nar-len"), SOURCE, REFERENCE).warnings[0]


def test_long_recordings_go_in_pieces_that_meet_where_it_is_quiet() -> None:
    speaker = voice("v2-nar", ("tts", "vc"), seconds=1.0)
    long = recording(3.3)
    parts = pieces(speaker, long, 1.0)
    assert len(parts) > 3 and max(map(len, parts)) <= speaker.sample_rate
    np.testing.assert_array_equal(np.concatenate(parts), long)
    loud = np.sqrt(np.square(long).mean())
    assert all(np.sqrt(np.square(part[-160:]).mean()) < 0.3 * loud for part in parts[:-1])
    found = convert(speaker, long, REFERENCE, mask=0.5)
    assert found.wav.shape == long.shape and np.isfinite(found.wav).all()


@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar", "nar-len", "v2-nar"])
@pytest.mark.parametrize("task", ["ns", "sr", "tse"])
def test_a_part_of_a_mixture_is_as_long_as_the_mixture(kind: str, task: str) -> None:
    speaker = voice(kind, ("tts", "ns", "sr", "tse"))
    found = separate(speaker, SOURCE, task, REFERENCE if task == "tse" else None, seed=1)
    assert found.wav.shape == SOURCE.shape and np.isfinite(found.wav).all()
    with pytest.raises(SpeechError, match=f"never learned {task}: .*model.tasks"):
        separate(voice(kind), SOURCE, task)


def test_the_commands(tmp_path, capsys, monkeypatch) -> None:
    import vall_e.edit_cli as cli

    source, reference, out = (tmp_path / name for name in ("a.wav", "b.wav", "c.wav"))
    soundfile.write(source, SOURCE, 16_000)
    soundfile.write(reference, REFERENCE, 16_000)
    monkeypatch.setattr(cli, "load_voice", lambda arguments: voice("v2-nar", ("tts", "ns", "sr", "tse")))
    for command in (
        ["convert", source, "--ref-audio", reference, "--mask", 0.3],
        ["clean", source],
        ["clean", source, "--keep", "noise"],
        ["extract", source, "--ref-audio", reference],
    ):
        assert main([*map(str, command), "-o", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["seconds"] == pytest.approx(1.3)
        assert soundfile.info(out).frames == len(SOURCE)
        out.unlink()
    assert main(["convert", str(source), "--ref-audio", str(reference), "--mask", "2", "-o", str(out)]) == 1
    assert "between 0" in capsys.readouterr().err


def test_loops_and_silence_are_told_where_the_source_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, long = voice("v2-nar", ("tts", "vc", "ns", "sr", "tse"), seconds=4.0), recording(2.4)
    loops = [True]

    def respond(model, prompts, sampling, seeds, longest, choose, frames, given) -> list:
        rng = np.random.default_rng(0)
        made = [np.full((2, n), 7) if loops[0] else rng.integers(32, size=(2, n)) for n in longest]
        return [(Candidate(codes, True, 0.0), codes) for codes in made]

    monkeypatch.setattr(shared, "respond", respond)
    works = {
        "vc": lambda source: convert(speaker, source, REFERENCE),
        "ns": lambda source: separate(speaker, source, "ns"),
        "sr": lambda source: separate(speaker, source, "sr"),
        "tse": lambda source: separate(speaker, source, "tse", REFERENCE),
    }

    def told(name: str, source: np.ndarray = long) -> list[str]:
        return [w for w in works[name](source).warnings if "again and again" in w or "silen" in w]

    assert {name for name in works if told(name)} == {"vc", "ns", "tse"}
    assert told("vc")[0].startswith("the same 0.02 s again and again for 2.4 s")
    assert told("vc", np.concatenate((long, REFERENCE, SOURCE)))[0].startswith("from 0.0 to ")
    copy = speaker.to_wave(np.full((2, 140), 7))
    assert told("vc", copy) == []
    loops[0] = False
    assert not any(told(name) for name in works)
    monkeypatch.setattr(shared, "decode", lambda voice, codes, gain: np.zeros(len(long), dtype=np.float32))
    assert {name for name in works if told(name) == ["silent throughout"]} == {"vc", "ns", "tse"}
    assert told("sr") == []
