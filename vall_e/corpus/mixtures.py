"""Each clip in noise and each clip under another voice, frame by frame with the clip: what ns, sr, nse and tse, the
tasks of SpeechX (2308.06873), learn from.

What is drawn for a clip (which noise, where in it, how loud, which other speaker) depends on the seed, the clip's id
and what there is to draw from, never on shards and processes.

Dimensions: N samples, L levels, T frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vall_e.audio import resample
from vall_e.codecs.base import Codec
from vall_e.config import ConfigError
from vall_e.corpus.clips import MIN_SECONDS, STAGE, Clip, UnusableError, copies, encode_waves, read_sound, read_voice
from vall_e.corpus.layouts.base import recordings
from vall_e.corpus.mixing import looped, mix, placed, reverberate
from vall_e.corpus.quality import Row, reject
from vall_e.corpus.splits import TEST
from vall_e.decoders import EXTENSIONS
from vall_e.preparation import EncodeConfig, MixturesConfig

TRIES = 8  # other speakers' utterances that are looked at until one can be used
CACHED = 64  # noise recordings that a process keeps
Voice = tuple[str, str, float, float]  # id and path of an utterance, where it starts and ends there, seconds


@dataclass(frozen=True)
class Sources:
    """Recordings to mix with: name (the path below its folder) → path, in the order of names."""

    noises: Mapping[str, Path]
    rooms: Mapping[str, Path]


@dataclass(frozen=True)
class Mixture:
    """A clip and something else at once.

    Attributes:
        clip: what is alone in the shards.
        kind: noise or overlap.
        other: the noise's name or the other utterance's id.
        ratio_db: level of the clip above the other, dB.
        room: name of the impulse response, None for no room.
        wav: float32 [N], as long as the clip.
        noise: float32 [N], the noise as it is in ``wav``; None for another voice.
    """

    clip: Clip
    kind: str
    other: str
    ratio_db: float
    room: str | None
    wav: np.ndarray
    noise: np.ndarray | None


def survey(config: MixturesConfig) -> tuple[Sources, list[Row]]:
    """What can be mixed with, and rejects (schema REJECTS) of the recordings that cannot.

    Raises:
        ConfigError: a folder is missing, or holds no recording that can be used.
    """
    rejects: list[Row] = []
    noises = _usable("noise", config.noise, rejects) if config.noise is not None else {}
    rooms = _usable("rirs", config.rirs, rejects) if config.rirs is not None else {}
    return Sources(noises, rooms), rejects


class Partners:
    """For every clip utterances of the same split by other speakers.

    Args:
        rows: all utterances, whatever shard they are in.
        seed: of what is drawn.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], seed: int) -> None:
        self.seed = seed
        self.order: dict[str, list[Voice]] = {}
        self.own: dict[tuple[str, str], list[int]] = {}  # first and last place of a speaker in the order of a split
        for row in sorted(rows, key=lambda row: (row["split"], row["speaker"], row["id"])):
            voices = self.order.setdefault(row["split"], [])
            self.own.setdefault((row["split"], row["speaker"]), [len(voices), 0])[1] = len(voices) + 1
            voices.append((row["id"], row["path"], row["start"], row["end"]))

    def of(self, rows: Sequence[dict[str, Any]], settings: EncodeConfig) -> dict[str, list[Voice]]:
        """For every clip of ``rows``, by its id, utterances to take the first usable one of; none in a test split."""
        return {
            copy["id"]: self._drawn(copy["id"], row)
            for row in rows
            if row["split"] != TEST
            for _, copy in copies(row, settings)
        }

    def _drawn(self, name: str, row: dict[str, Any]) -> list[Voice]:
        voices = self.order[row["split"]]
        first, last = self.own[row["split"], row["speaker"]]
        others = len(voices) - (last - first)
        if not others:
            return []
        places = _generator(self.seed, "partner", name).integers(others, size=TRIES)
        return [voices[i if i < first else i + last - first] for i in places.tolist()]


class Mixer:
    """Makes the mixtures of clips; one a process.

    Args:
        config: what to mix, and how loud.
        settings: how recordings of voices are prepared.
        sources: of ``survey``.
        rate: the codec's, Hz.
    """

    def __init__(self, config: MixturesConfig, settings: EncodeConfig, sources: Sources, rate: int) -> None:
        self.config, self.settings, self.sources, self.rate = config, settings, sources, rate
        self.noises, self.rooms = tuple(sources.noises), tuple(sources.rooms)
        self._sound = lru_cache(CACHED)(self._read)

    def mixtures(self, clip: Clip, voices: Sequence[Voice]) -> Iterator[Mixture]:
        """The clip in noise, where there is noise, and under the first of ``voices`` that can be used, if any."""
        name = clip.row["id"]
        if self.noises:
            rng = _generator(self.config.seed, "noise", name)
            noise = _one(self.noises, rng)
            other = looped(self._sound(self.sources.noises[noise]), len(clip.wav), rng)
            yield self._mixed(clip, "noise", noise, other, self.config.snr_db, rng)
        partner = self._partner(voices)
        if partner is not None and self.config.overlap_db is not None:
            rng = _generator(self.config.seed, "overlap", name)
            other = placed(partner[1], len(clip.wav), rng)
            yield self._mixed(clip, "overlap", partner[0], other, self.config.overlap_db, rng)

    def _mixed(
        self, clip: Clip, kind: str, name: str, other: np.ndarray, ratios: tuple[float, float],
        rng: np.random.Generator,
    ) -> Mixture:  # fmt: skip
        ratio, voice, room = float(rng.uniform(*ratios)), clip.wav, None
        if self.rooms and rng.random() < self.config.rir_share:
            room = _one(self.rooms, rng)
            impulse = self._sound(self.sources.rooms[room])
            voice = reverberate(voice, impulse, self.rate)
            if kind == "overlap":  # both are in the room; noise was recorded in its own
                other = reverberate(other, impulse, self.rate)
        wav, part = mix(voice, other, ratio, self.rate)
        return Mixture(clip, kind, name, ratio, room, wav, part if kind == "noise" else None)

    def _partner(self, voices: Sequence[Voice]) -> tuple[str, np.ndarray] | None:
        for name, path, start, end in voices:
            try:
                wav, rate = read_voice(path, self.settings, start, end)
            except UnusableError:
                continue
            wav = resample(wav, rate, self.rate)
            if len(wav) >= MIN_SECONDS * self.rate:
                return name, wav
        return None

    def _read(self, path: Path) -> np.ndarray:
        return resample(*read_sound(str(path)), self.rate)


def encode_mixtures(codec: Codec, mixtures: Sequence[Mixture], batch_seconds: float) -> list[dict[str, Any]]:
    """Rows of schema MIXTURES, in the order of ``mixtures``."""
    waves = [m.wav for m in mixtures] + [m.noise for m in mixtures if m.noise is not None]
    codes = encode_waves(codec, waves, batch_seconds)
    noises = iter(codes[len(mixtures) :])
    return [
        {
            "id": m.clip.row["id"], "kind": m.kind, "other": m.other, "ratio_db": m.ratio_db, "room": m.room,
            "frames": m.clip.frames, "levels": codec.levels, "codes": code.reshape(-1),
            "noise": None if m.noise is None else next(noises).reshape(-1),
        }
        for m, code in zip(mixtures, codes, strict=False)
    ]  # fmt: skip


def _usable(key: str, folder: str, rejects: list[Row]) -> dict[str, Path]:
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"encode.mixtures.{key} {folder}: no such folder; name one that holds recordings, or null")
    found: dict[str, Path] = {}
    faults: list[Row] = []
    for path in recordings(root):
        name = path.relative_to(root).as_posix()
        try:
            name.encode("utf-8")
            read_sound(str(path))
        except UnicodeEncodeError:
            faults.append(reject(f"{key}/{name}", STAGE, "bad_file_name", name, "a name in UTF-8"))
        except UnusableError as error:
            faults.append(error.row(f"{key}/{name}"))
        else:
            found[name] = path
    if not found:
        example = next((f"{row['id']}: {row['rule']}, {row['value']}" for row in faults), "there is none")
        raise ConfigError(
            f"encode.mixtures.{key} {folder}: no {', '.join(EXTENSIONS)} file in it or below it can be used ({example})"
        )
    rejects += faults
    return dict(sorted(found.items()))


def _one(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


def _generator(seed: int, purpose: str, name: str) -> np.random.Generator:
    """A generator of its own for each purpose and clip."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
