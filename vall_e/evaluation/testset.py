"""What the model is asked to say, in whose voice: test items that it cannot have seen in training.

Two kinds of corpus, one kind of item:

* utterances: a recording of split ``test``; its prompt is another held-out recording of that speaker that says
  something else. With ``split.by: text`` its text is in no training recording of any speaker.
* joined clips (``train.join``): a new string of clips' texts that the loader never trains on
  (``splits.held_out``); "recording" and prompt are joins of the speaker's test clips, no clip in both.

A plan names files only, so that it can be made and checked without reading audio; ``items.load_item`` makes the audio.
Everything is drawn from hashes of the seed and the ids: the order of rows in the manifest does not matter.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vall_e.config import Params
from vall_e.corpus import splits
from vall_e.text.normalize import normalize

HELD_OUT = ("test", "val")
_TRIES = 200
_PROMPT_GAP = (0.08, 0.16)

Row = Mapping[str, Any]


class TestSetError(ValueError):
    """The corpus leaves nothing to test on."""

    __test__ = False


@dataclass(frozen=True)
class Plan:
    """A test item before its audio is read.

    ``text`` is normalised, ``written`` as it was given. ``recording`` (empty where there is none) and ``prompt`` are
    manifest ids, joined in order; ``prompt_max_seconds`` None leaves the prompt whole. ``prompt_text`` may be empty.
    """

    id: str
    text: str
    written: str
    language: str
    speaker: str
    seen_speaker: bool
    seen_text: bool
    recording: tuple[str, ...]
    prompt: tuple[str, ...]
    prompt_text: str
    prompt_max_seconds: float | None
    gap_seconds: tuple[float, float]
    seed: int


def plan_items(config: Params, rows: Iterable[Row], texts: Mapping[str, str]) -> tuple[list[Plan], dict[str, int]]:
    """Choose the test items.

    Args:
        config: sections split, train (join), sampling and evaluate are read; ``evaluate.joined`` chooses the kind.
        rows: the manifest; rows without an entry in ``texts`` were rejected by a later stage and are left out.
        texts: manifest id → transcript.

    Returns:
        At most ``evaluate.utterances`` plans, speakers in turn, and how many candidates each rule dropped.

    Raises:
        TestSetError: nothing is left to test on; the message names the parameter to change.
    """
    rows = sorted((row for row in rows if row["id"] in texts), key=lambda row: row["id"])
    said = {row["id"]: normalize(texts[row["id"]], row["language"]) for row in rows}
    seen = {row["speaker"] for row in rows if row["split"] == "train"}
    if config.train.join is not None and config.evaluate.joined:
        return _plan_joined(config, rows, said, texts, seen)
    return _plan_utterances(config, rows, said, texts, seen)


def _rng(seed: int, *key: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join([str(seed), *key]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _shuffled(rows: Iterable[Row], seed: int, key: str) -> list[Row]:
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}\0{key}\0{row['id']}".encode()).digest())


def seed_of(seed: int, name: str) -> int:
    """The seed of the item ``name``."""
    return int(_rng(seed, "item", name).integers(0, 2**31 - 1))


def _plan_utterances(
    config: Params, rows: Sequence[Row], said: Mapping[str, str], texts: Mapping[str, str], seen: set[str]
) -> tuple[list[Plan], dict[str, int]]:
    seed = config.evaluate.seed
    low, high = config.evaluate.prompt_seconds
    # A test speaker says the training speakers' texts too; where texts are held out, those are no new texts.
    known = {said[row["id"]] for row in rows if row["split"] == "train"}
    dropped: Counter[str] = Counter()
    queues: dict[str, list[Row]] = defaultdict(list)
    held: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["split"] in HELD_OUT:
            held[row["speaker"]].append(row)
        if row["split"] != "test":
            continue
        if row["seconds"] > config.sampling.max_seconds:
            dropped["longer_than_max_seconds"] += 1
        elif config.split.by == "text" and said[row["id"]] in known:
            dropped["text_in_training"] += 1
        else:
            queues[row["speaker"]].append(row)
    if not queues and not dropped:
        raise TestSetError("no recording is in split test: raise split.test_fraction, or name split.test_speakers")
    queues = {speaker: _shuffled(queue, seed, "order") for speaker, queue in queues.items()}
    plans: list[Plan] = []
    for row in _in_turn(queues):
        if len(plans) == config.evaluate.utterances:
            break
        others = [r for r in held[row["speaker"]] if said[r["id"]] != said[row["id"]]]
        prompt = _choose_prompt(_shuffled(others, seed, row["id"]), low, high)
        if not prompt:
            dropped["no_prompt"] += 1
            continue
        plans.append(
            Plan(
                row["id"],
                said[row["id"]],
                texts[row["id"]],
                row["language"],
                row["speaker"],
                row["speaker"] in seen,
                said[row["id"]] in known,
                (row["id"],),
                tuple(r["id"] for r in prompt),
                " ".join(said[r["id"]] for r in prompt),
                high,
                _PROMPT_GAP,
                seed_of(seed, row["id"]),
            )
        )
    if not plans:
        raise TestSetError(
            f"none of the test recordings can be used ({_listed(dropped)}): a speaker needs two held-out recordings of "
            "different text, one of them new to training, so raise split.test_fraction, split.val_fraction or "
            "sampling.max_seconds"
        )
    return plans, dict(dropped)


def _plan_joined(
    config: Params, rows: Sequence[Row], said: Mapping[str, str], texts: Mapping[str, str], seen: set[str]
) -> tuple[list[Plan], dict[str, int]]:
    join, seed = config.train.join, config.evaluate.seed
    low, high = config.evaluate.prompt_seconds
    clips: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["split"] == "test":
            clips[row["speaker"]][said[row["id"]]].append(row)
    if not clips:
        raise TestSetError("no clip is in split test: raise split.test_fraction (train.join wants split.by: utterance)")
    plans: list[Plan] = []
    taken: set[tuple[str, str]] = set()
    dropped: Counter[str] = Counter()
    speakers = sorted(clips)
    exhausted: set[str] = set()
    turn = 0
    while len(plans) < config.evaluate.utterances and len(exhausted) < len(speakers):
        speaker = speakers[turn % len(speakers)]
        turn += 1
        if speaker in exhausted:
            continue
        rng = _rng(seed, speaker, str(turn))
        words = _new_string(rng, sorted(clips[speaker]), speaker, taken, config)
        if words is None:
            exhausted.add(speaker)
            dropped["no_new_string"] += 1
            continue
        recording = _takes(rng, clips[speaker], words)
        used = {row["id"] for row in recording}
        rest = [row for word in sorted(clips[speaker]) for row in clips[speaker][word] if row["id"] not in used]
        prompt = _choose_prompt([rest[i] for i in rng.permutation(len(rest))], low, high)
        taken.add((speaker, " ".join(words)))
        if not prompt:
            dropped["no_prompt"] += 1
            if dropped["no_prompt"] > config.evaluate.utterances:
                break
            continue
        name = f"new-{len(plans):04d}"
        plans.append(
            Plan(
                name,
                " ".join(words),
                " ".join(texts[row["id"]] for row in recording),
                recording[0]["language"],
                speaker,
                speaker in seen,
                False,
                tuple(row["id"] for row in recording),
                tuple(row["id"] for row in prompt),
                " ".join(said[row["id"]] for row in prompt),
                high,
                join.gap_seconds,
                seed_of(seed, name),
            )
        )
    if not plans:
        raise TestSetError(
            f"no new string can be tested ({_listed(dropped)}): every speaker needs several test clips "
            "(split.test_fraction), and enough strings of train.join.min_clips to max_clips texts to hold some out"
        )
    return plans, dict(dropped)


def _new_string(
    rng: np.random.Generator, vocabulary: Sequence[str], speaker: str, taken: set[tuple[str, str]], config: Params
) -> list[str] | None:
    """A held-out string that is new for this speaker, lengths equally likely; None when the tries run out."""
    join = config.train.join
    first = int(rng.integers(join.min_clips, join.max_clips + 1))
    span = join.max_clips - join.min_clips + 1
    for shift in range(span):
        count = join.min_clips + (first - join.min_clips + shift) % span
        for _ in range(_TRIES):
            words = [vocabulary[i] for i in rng.integers(0, len(vocabulary), size=count)]
            text = " ".join(words)
            if (speaker, text) not in taken and splits.held_out(text, config.split.seed, config.split.test_fraction):
                return words
    return None


def _takes(rng: np.random.Generator, clips: Mapping[str, Sequence[Row]], words: Sequence[str]) -> list[Row]:
    """A clip for each word; a word that comes twice has two different takes while there are any."""
    shuffled = {word: [clips[word][i] for i in rng.permutation(len(clips[word]))] for word in sorted(set(words))}
    used: Counter[str] = Counter()
    chosen = []
    for word in words:
        chosen.append(shuffled[word][used[word] % len(shuffled[word])])
        used[word] += 1
    return chosen


def _in_turn(queues: Mapping[str, Sequence[Row]]) -> Iterable[Row]:
    """First row of every speaker, then the second, …"""
    for turn in range(max(map(len, queues.values()), default=0)):
        for speaker in sorted(queues):
            if turn < len(queues[speaker]):
                yield queues[speaker][turn]


def _choose_prompt(rows: Sequence[Row], low: float, high: float) -> list[Row]:
    """Recordings that make a prompt of ``low`` to ``high`` seconds.

    A whole recording of that length is best; else short ones are joined; else a long one is cut later; else what
    there is. Empty only where ``rows`` is.
    """
    whole = [row for row in rows if low <= row["seconds"] <= high]
    if whole:
        return [whole[0]]
    joined: list[Row] = []
    total = 0.0
    for row in rows:
        if total + row["seconds"] + _PROMPT_GAP[1] * len(joined) <= high:
            joined.append(row)
            total += row["seconds"]
        if total >= low:
            return joined
    longer = [row for row in rows if row["seconds"] > high]
    return longer[:1] or joined or list(rows[:1])


def _listed(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{rule}: {n}" for rule, n in sorted(dropped.items())) or "no candidates"
