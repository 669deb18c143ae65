"""Test sets from lists that others publish (``evaluate.testset``): texts and prompts that no corpus of ours holds.

A line is a test item, in one of two formats; which of them, its separator tells. Empty lines are skipped.

* Seed-TTS (2406.02430): ``utt|prompt_text|prompt_wav|text`` or ``…|text|wav``. Paths are relative to the list. With
  ``wav``, a recording of the text by that speaker, codec copy and recording are measured beside the model.
* LibriSpeech, cross-sentence, as F5-TTS (2410.06885) publishes it: ``ref_utt⇥ref_dur⇥ref_txt⇥gen_utt⇥gen_dur⇥gen_txt``
  (tabs). ``ref_utt`` is the prompt, ``gen_utt`` the recording of the text; ``61-70968-0002`` is
  ``61/70968/61-70968-0002.flac`` (or .wav) beside the list. The durations are seconds, and only checked to be numbers.

Prompts are used whole. Continuations (a prompt that is the beginning of the recording itself) are not asked for: the
words of such a prompt are not known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vall_e import audio
from vall_e.config import Params
from vall_e.evaluation.testset import Plan, TestSetError, seed_of
from vall_e.text.normalize import normalize

_SAID = 5  # broken lines named in an error
_SUFFIXES = (".flac", ".wav")


@dataclass(frozen=True)
class Entry:
    """A line: who says what. ``recording`` is None where the list has none of the text."""

    id: str
    text: str
    speaker: str
    prompt: Path
    prompt_text: str
    recording: Path | None


class _BrokenLine(ValueError):
    pass


def read_list(path: str | Path) -> list[Entry]:
    """The entries of a list, in its order.

    Raises:
        TestSetError: it cannot be read, is empty, or has broken lines, which are named by number with what is wrong.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TestSetError(f"evaluate.testset {path} cannot be read: {error}") from None
    entries: list[Entry] = []
    broken: list[str] = []
    taken: dict[str, int] = {}
    sound: dict[Path, str | None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = (_librispeech if "\t" in line else _seed_tts)(line, path.parent)
            _check(entry, sound)
            first = taken.setdefault(entry.id, number)
            if first != number:
                raise _BrokenLine(f"{entry.id} is line {first}, too: names of items are unique")
            entries.append(entry)
        except _BrokenLine as error:
            broken.append(f"line {number}: {error}")
    if broken:
        more = f"; and {len(broken) - _SAID} more" if len(broken) > _SAID else ""
        raise TestSetError(
            f"evaluate.testset {path} has {len(broken)} broken lines: {'; '.join(broken[:_SAID])}{more}. Mend or "
            "remove them"
        )
    if not entries:
        raise TestSetError(f"evaluate.testset {path} has no lines: it needs utt|prompt_text|prompt_wav|text[|wav]")
    return entries


def _seed_tts(line: str, folder: Path) -> Entry:
    cells = [cell.strip() for cell in line.split("|")]
    if len(cells) not in (4, 5):
        raise _BrokenLine(
            f"{len(cells)} columns in place of utt|prompt_text|prompt_wav|text[|wav], or of six between tabs"
        )
    name, prompt_text, prompt, text = cells[:4]
    if not prompt:
        raise _BrokenLine("no prompt_wav")
    recording = folder / cells[4] if len(cells) == 5 and cells[4] else None
    return Entry(_plain(name), text, Path(prompt).stem, folder / prompt, prompt_text, recording)


def _librispeech(line: str, folder: Path) -> Entry:
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) != 6:
        raise _BrokenLine(f"{len(cells)} columns in place of ref_utt, ref_dur, ref_txt, gen_utt, gen_dur, gen_txt")
    prompt, prompt_seconds, prompt_text, name, seconds, text = cells
    for value in (prompt_seconds, seconds):
        try:
            float(value)
        except ValueError:
            raise _BrokenLine(f"{value!r} is no number of seconds") from None
    if prompt == name:
        raise _BrokenLine(f"prompt and text are one recording, {name}: continuations are not tested")
    speaker = prompt.split("-")[0]
    return Entry(_plain(name), text, speaker, _utterance(folder, prompt), prompt_text, _utterance(folder, name))


def _plain(name: str) -> str:
    """The name of an item, which becomes the name of its waves."""
    name = name.removesuffix(".wav")
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise _BrokenLine(f"{name!r} is no name for a file")
    return name


def _utterance(folder: Path, name: str) -> Path:
    parts = name.split("-")
    if len(parts) != 3 or not all(part.isalnum() for part in parts):
        raise _BrokenLine(f"{name!r} is no LibriSpeech utterance, such as 61-70968-0002")
    place = folder / parts[0] / parts[1]
    return next((f for f in (place / f"{name}{suffix}" for suffix in _SUFFIXES) if f.is_file()), place / f"{name}.flac")


def _check(entry: Entry, sound: dict[Path, str | None]) -> None:
    """Raises _BrokenLine for what cannot be tested; ``sound`` remembers the files that were looked at."""
    if not entry.text:
        raise _BrokenLine("no text to say")
    for path in filter(None, (entry.prompt, entry.recording)):
        if path not in sound:
            try:
                audio.probe(path)
                sound[path] = None
            except (audio.AudioError, OSError) as error:
                sound[path] = str(error)
        if sound[path] is not None:
            raise _BrokenLine(sound[path])


def plan_list(
    config: Params, rows: Iterable[Mapping[str, Any]], texts: Mapping[str, str]
) -> tuple[list[Plan], dict[str, int], dict[str, dict[str, Any]]]:
    """The list's items.

    Args:
        config: sections evaluate and phonemize (language: that of the list) are read.
        rows: the corpus' manifest, which says what training has seen.
        texts: manifest id → transcript.

    Returns:
        At most ``evaluate.utterances`` plans, chosen by the hash of their names; how many each rule dropped; and the
        files, as rows of a manifest (path, start, end) by the ids that the plans name.

    Raises:
        TestSetError: as ``read_list``, or a text of which nothing can be spoken.
    """
    language, seed = config.phonemize.language, config.evaluate.seed
    entries = read_list(config.evaluate.testset)
    trained = [row for row in rows if row["split"] == "train" and row["id"] in texts]
    known = {normalize(texts[row["id"]], row["language"]) for row in trained}
    speakers = {row["speaker"] for row in trained}
    chosen = sorted(entries, key=lambda e: hashlib.sha256(f"{seed}\0{e.id}".encode()).digest())
    chosen = chosen[: config.evaluate.utterances]
    files: dict[str, dict[str, Any]] = {}
    plans: list[Plan] = []
    dropped = {"not_asked_for": len(entries) - len(chosen)} if len(entries) > len(chosen) else {}
    for entry in chosen:
        said = normalize(entry.text, language)
        if not said:
            raise TestSetError(f"evaluate.testset: nothing of {entry.text!r} ({entry.id}) can be spoken in {language}")
        plans.append(
            Plan(
                id=entry.id,
                text=said,
                written=entry.text,
                language=language,
                speaker=entry.speaker,
                seen_speaker=entry.speaker in speakers,
                seen_text=said in known,
                recording=() if entry.recording is None else (_file(files, entry.recording),),
                prompt=(_file(files, entry.prompt),),
                prompt_text=normalize(entry.prompt_text, language),
                prompt_max_seconds=None,
                gap_seconds=(0.0, 0.0),
                seed=seed_of(seed, entry.id),
            )
        )
    return plans, dropped, files


def _file(files: dict[str, dict[str, Any]], path: Path) -> str:
    files[str(path)] = {"path": str(path), "start": 0.0, "end": None}
    return str(path)


def digests_of(path: str | Path, digest: Callable[[Path], str]) -> list[str]:
    """Digests of the list and of the recordings that it names, for a key of unfinished work."""
    entries = read_list(path)
    named = {file for entry in entries for file in (entry.prompt, entry.recording) if file is not None}
    return [digest(Path(path)), *(digest(file) for file in sorted(named))]
