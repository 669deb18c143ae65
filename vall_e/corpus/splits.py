"""Which utterances are for training, for watching it, and for testing: by hash, so that nothing else moves a row.

An utterance keeps its split when others are added, removed or reordered, with one exception: where the hash leaves a
wanted split of a small corpus empty, the group next to its threshold is moved in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vall_e.preparation import IngestConfig

TRAIN, VAL, TEST = "train", "val", "test"
_TEXT = "text:"


@dataclass(frozen=True)
class Candidate:
    """What decides about a split: ``text`` is normalised, or None where it is not known yet."""

    id: str
    speaker: str
    text: str | None


def position(key: str, seed: int) -> float:
    """A number in 0..1 that depends on ``key`` and ``seed`` only, evenly spread over keys."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def held_out(text: str, seed: int, fraction: float) -> bool:
    """Whether ``text`` belongs to the test set: the same rule for sentences and for strings that a loader joins.

    Args:
        text: normalised text; the width of its spaces does not matter.
        seed: ``ingest.seed``.
        fraction: ``ingest.test_fraction``.
    """
    return position(_text_key(text), seed) < fraction


def assign(
    candidates: Iterable[Candidate], config: IngestConfig, test_speakers: Collection[str] = ()
) -> dict[str, str]:
    """Split of every utterance id.

    Speakers in ``config.test_speakers`` or ``test_speakers`` are for testing whatever they say. Of the others, what
    ``config.split_by`` names stays together: all takes of a text, of a speaker, or each utterance by itself. An
    utterance without text goes by its id. Where texts are held out and some have several words, single words are for
    training: reading one is nothing new to a model that knows it from longer texts.
    """
    kept_out = {*config.test_speakers, *test_speakers}
    out: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for candidate in candidates:
        if candidate.speaker in kept_out:
            out[candidate.id] = TEST
        else:
            groups.setdefault(_group(candidate, config.split_by), []).append(candidate.id)
    order = sorted(groups, key=lambda key: (position(key, config.seed), key))
    splits = {key: _by_position(position(key, config.seed), config) for key in order}
    if config.split_by == "text":
        words = [key for key in order if key.startswith(_TEXT) and " " not in key]
        longer = any(key.startswith(_TEXT) and " " in key for key in order)
        splits |= dict.fromkeys(words if longer else (), TRAIN)
    _fill_empty(order, splits, config, has_test=bool(out))
    for key, ids in groups.items():
        out.update(dict.fromkeys(ids, splits[key]))
    return out


def _text_key(text: str) -> str:
    return _TEXT + " ".join(text.split())


def _group(candidate: Candidate, split_by: str) -> str:
    if split_by == "speaker":
        return f"speaker:{candidate.speaker}"
    if split_by == "text" and candidate.text:
        return _text_key(candidate.text)
    return f"id:{candidate.id}"


def _by_position(value: float, config: IngestConfig) -> str:
    if value < config.test_fraction:
        return TEST
    return VAL if value < config.test_fraction + config.val_fraction else TRAIN


def _fill_empty(order: list[str], splits: dict[str, str], config: IngestConfig, *, has_test: bool) -> None:
    """Give a small corpus what it asked for: a test group, then a validation group, then at least one for training."""
    for split, wanted in ((TEST, config.test_fraction > 0 and not has_test), (VAL, config.val_fraction > 0)):
        training = [key for key in order if splits[key] == TRAIN]
        if wanted and split not in splits.values() and len(training) > 1:
            splits[training[0]] = split
    if order and TRAIN not in splits.values():
        splits[order[-1]] = TRAIN
