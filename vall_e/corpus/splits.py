"""Which utterances are for training, for watching it, and for testing: by hash, so that nothing else moves a row.

An utterance keeps its split when others are added, removed or reordered, with two exceptions: where the hash leaves a
wanted split of a small corpus empty, the group next to its threshold is moved in, and takes that are linked (one sound,
twice in the corpus) go where the first of their groups goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vall_e.preparation import SplitConfig

TRAIN, VAL, TEST = "train", "val", "test"
_TEXT = "text:"


@dataclass(frozen=True)
class Candidate:
    """What decides about a split: ``text`` is normalised, or None where there is none."""

    id: str
    speaker: str
    text: str | None
    recording: str


def position(key: str, seed: int) -> float:
    """A number in 0..1 that depends on ``key`` and ``seed`` only, evenly spread over keys."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def held_out(text: str, seed: int, fraction: float) -> bool:
    """Whether ``text`` belongs to the test set: the same rule for sentences and for strings that a loader joins.

    Args:
        text: normalised text; the width of its spaces does not matter.
        seed: ``split.seed``.
        fraction: ``split.test_fraction``.
    """
    return position(_text_key(text), seed) < fraction


def assign(
    candidates: Iterable[Candidate],
    config: SplitConfig,
    test_speakers: Collection[str] = (),
    links: Iterable[tuple[str, str]] = (),
) -> dict[str, str]:
    """Split of every utterance id.

    Speakers in ``config.test_speakers`` or ``test_speakers`` are for testing whatever they say. Of the others, what
    ``config.by`` names stays together: all takes of a text, of a speaker, all pieces of a recording, or each utterance
    by itself. An utterance without text goes by its id. Where texts are held out and some have several words, single
    words are for training: reading one is nothing new to a model that knows it from longer texts.

    Args:
        candidates: any order.
        config: what stays together, shares and seed.
        test_speakers: besides those of ``config``.
        links: pairs of ids that are one sound: they, and all that stays together with them, share a split.
    """
    kept_out = {*config.test_speakers, *test_speakers}
    group_of: dict[str, str] = {}
    forced: set[str] = set()
    for candidate in candidates:
        tested = candidate.speaker in kept_out
        group_of[candidate.id] = group = _group(candidate, config.by, tested)
        if tested:
            forced.add(group)
    leads = _leads(group_of, links, config.seed)
    forced = {leads[group] for group in forced}
    order = sorted({*leads.values()} - forced, key=lambda key: (position(key, config.seed), key))
    splits = {key: _by_position(position(key, config.seed), config) for key in order}
    if config.by == "text":
        words = [key for key in order if key.startswith(_TEXT) and " " not in key]
        longer = any(key.startswith(_TEXT) and " " in key for key in order)
        splits |= dict.fromkeys(words if longer else (), TRAIN)
    _fill_empty(order, splits, config, has_test=bool(forced))
    splits |= dict.fromkeys(forced, TEST)
    return {name: splits[leads[group]] for name, group in group_of.items()}


def _text_key(text: str) -> str:
    return _TEXT + " ".join(text.split())


def _group(candidate: Candidate, by: str, tested: bool) -> str:
    if by == "recording":
        return f"recording:{candidate.recording}"
    # What a speaker of the test set says does not take its text out of training.
    if by == "speaker" or tested:
        return f"speaker:{candidate.speaker}"
    if by == "text" and candidate.text:
        return _text_key(candidate.text)
    return f"id:{candidate.id}"


def _leads(group_of: dict[str, str], links: Iterable[tuple[str, str]], seed: int) -> dict[str, str]:
    """Group → the group that decides for it: of all that links connect, the one with the lowest position."""
    leads = {group: group for group in group_of.values()}

    def lead(group: str) -> str:
        while leads[group] != group:
            leads[group] = group = leads[leads[group]]
        return group

    for first, second in links:
        ends = {lead(group_of[first]), lead(group_of[second])}
        leads |= dict.fromkeys(ends, min(ends, key=lambda key: (position(key, seed), key)))
    return {group: lead(group) for group in leads}


def _by_position(value: float, config: SplitConfig) -> str:
    if value < config.test_fraction:
        return TEST
    return VAL if value < config.test_fraction + config.val_fraction else TRAIN


def _fill_empty(order: list[str], splits: dict[str, str], config: SplitConfig, *, has_test: bool) -> None:
    """Give a small corpus what it asked for: a test group, then a validation group, then at least one for training."""
    for split, wanted in ((TEST, config.test_fraction > 0 and not has_test), (VAL, config.val_fraction > 0)):
        training = [key for key in order if splits[key] == TRAIN]
        if wanted and split not in splits.values() and len(training) > 1:
            splits[training[0]] = split
    if order and TRAIN not in splits.values():
        splits[order[-1]] = TRAIN
