"""From utterances to training samples: joining clips, choosing a prompt, dropping and corrupting inputs.

Everything is drawn from the generator that is passed in. Dimensions: L levels, T frames, n codes per level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vall_e.config import JoinConfig, ModelConfig, TrainConfig
from vall_e.corpus.splits import held_out
from vall_e.data.corpus import CodesCorpus, Utterance
from vall_e.models.packing import Sample

BAND = 0.15  # of a clip's phones: how far from an even pace speech may be
NARROWEST = 0.75  # phones


class SampleMaker:
    """Samples of the ``tts`` task from one split.

    Args:
        corpus: utterances.
        train, model: settings.
        codes: n.
        space: token id of the phone between words.
        held_out_seed, held_out_fraction: which joined texts belong to the test set and are never made.
        augment: drop and corrupt inputs (training) or not (validation).
    """

    def __init__(
        self,
        corpus: CodesCorpus,
        train: TrainConfig,
        model: ModelConfig,
        codes: int,
        space: int,
        held_out_seed: int,
        held_out_fraction: float,
        *,
        augment: bool,
    ) -> None:
        self.corpus, self.train, self.codes, self.space, self.augment = corpus, train, codes, space, augment
        self.levels = corpus.silence.shape[0]
        self.held_out_seed, self.held_out_fraction = held_out_seed, held_out_fraction
        self.level_p = None
        if model.kind == "ar+nar":
            weights = np.array(model.level_weights or (1.0,) * self.levels)
            if len(weights) != self.levels:
                raise ValueError(
                    f"model.level_weights has {len(weights)} entries for a codec of {self.levels} levels: "
                    "give one a level"
                )
            self.level_p = weights / weights.sum()

    def make(self, index: int, step: int, rng: np.random.Generator) -> Sample:
        """The sample around utterance ``index``; ``step`` places it in the joining curriculum."""
        join = self.train.join
        if join is None:
            clips, gaps = [self.corpus.utterances[index]], []
        else:
            clips = self._clips(index, join, step, rng)
            gaps = [rng.uniform(*join.gap_seconds) for _ in clips[1:]]
        phones, response, spoken = self._join(clips, gaps, rng)
        limit = int(self.train.max_response_seconds * self.corpus.frame_rate)
        prompt = self._prompt(clips, rng)
        level = int(rng.choice(self.levels, p=self.level_p)) if self.level_p is not None else 0
        corrupted = None
        if self.augment:
            if rng.random() < self.train.text_dropout:
                phones, spoken = phones[:0], None
            if rng.random() < self.train.prompt_dropout:
                prompt = prompt[:, :0]
            corrupted = self._corrupt(response, rng)
        if response.shape[1] > limit:
            raise ValueError(
                f"utterance {clips[0].id} has {response.shape[1] / self.corpus.frame_rate:.1f} s, above "
                f"train.max_response_seconds {self.train.max_response_seconds}: raise it or lower ingest.max_seconds"
            )
        return Sample(phones, prompt, response, level, corrupted, spoken)

    def _clips(self, index: int, join: JoinConfig, step: int, rng: np.random.Generator) -> list[Utterance]:
        first = self.corpus.utterances[index]
        pool = self.corpus.by_speaker[first.speaker]
        least, most = join.min_clips, join.max_clips
        if step < join.curriculum_steps:
            least = 1
            most = min(most, 2) + max(0, most - 2) * step // join.curriculum_steps
        count = int(rng.integers(least, most + 1))
        if count == 1:
            return [first]
        for _ in range(20):
            clips = [first, *(self.corpus.utterances[i] for i in rng.choice(pool, count - 1))]
            text = " ".join(c.text for c in clips)
            if not self.augment or not held_out(text, self.held_out_seed, self.held_out_fraction):
                return clips
        return [first]

    def _join(
        self, clips: Sequence[Utterance], gaps: Sequence[float], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        phones, codes, spoken = [], [], []
        at = 0
        for clip, gap in zip(clips, (None, *gaps), strict=True):
            if gap is not None:
                pause = self.silence(gap, rng)
                phones.append(np.array([self.space]))
                codes.append(pause)
                spoken.append(np.full((2, pause.shape[1]), at))
                at += 1
            phones.append(clip.phones)
            codes.append(clip.codes)
            spoken.append(at + diagonal(len(clip.phones), clip.codes.shape[1]))
            at += len(clip.phones)
        return np.concatenate(phones), np.concatenate(codes, axis=1).astype(np.int64), np.concatenate(spoken, axis=1)

    def silence(self, seconds: float, rng: np.random.Generator) -> np.ndarray:
        """Codes int16 [L, T] of a pause, a random piece of the codec's silence."""
        frames, have = round(seconds * self.corpus.frame_rate), self.corpus.silence.shape[1]
        return self.corpus.silence[:, (rng.integers(have) + np.arange(frames)) % have]

    def _prompt(self, clips: Sequence[Utterance], rng: np.random.Generator) -> np.ndarray:
        """Codes int64 [L, P] of the same speaker saying something else, cut or joined to ``train.prompt_seconds``."""
        used = {c.id for c in clips}
        pool = self.corpus.by_speaker[clips[0].speaker]
        near = self.corpus.similar.get(clips[0].id, ())
        wanted = round(rng.uniform(*self.train.prompt_seconds) * self.corpus.frame_rate)
        parts: list[np.ndarray] = []
        total = 0
        for attempt in range(8):
            source = near if attempt == 0 and near and rng.random() < self.train.similar_probability else pool
            other = self.corpus.utterances[int(rng.choice(source))]
            if other.id in used and len(pool) > len(clips):
                continue
            parts.append(other.codes)
            total += other.codes.shape[1]
            if total >= wanted:
                break
        if not parts:
            return np.zeros((self.levels, 0), dtype=np.int64)
        codes = np.concatenate(parts, axis=1)
        start = int(rng.integers(max(1, codes.shape[1] - wanted + 1)))
        return codes[:, start : start + wanted].astype(np.int64)

    def _corrupt(self, response: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What the model sees of the response: some frames masked (n), some random."""
        chance = rng.random(response.shape[1])
        seen = response.copy()
        random = chance < self.train.input_random
        seen[:, random] = rng.integers(self.codes, size=(self.levels, int(random.sum())))
        masked = (chance >= self.train.input_random) & (chance < self.train.input_random + self.train.input_mask)
        seen[:, masked] = self.codes
        return seen


def diagonal(phones: int, frames: int) -> np.ndarray:
    """First and last phone int64 [2, T] that may be spoken in each frame: a band around an even pace."""
    centre = (np.arange(frames) + 0.5) / frames * phones
    width = max(NARROWEST, BAND * phones)
    band = np.floor(np.stack((centre - width, centre + width))).astype(np.int64)
    return band.clip(0, phones - 1)
