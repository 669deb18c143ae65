"""From utterances to training samples: joining clips, choosing a prompt, dropping and corrupting inputs.

Everything is drawn from the generator that is passed in. Dimensions: L levels, T frames, n codes per level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vall_e.config import ModelConfig, TrainConfig
from vall_e.corpus.splits import held_out
from vall_e.data.corpus import CodesCorpus, Utterance
from vall_e.data.makers import MAKERS, Given
from vall_e.data.mixtures import join_mixtures, learnable
from vall_e.family import KINDS, by_order, level_shares
from vall_e.models.packing import Layout, Mode, Sample
from vall_e.regimen import JoinConfig, TokenDropoutConfig
from vall_e.tasks import TASKS

BAND = 0.15  # of a clip's phones: how far from an even pace speech may be
NARROWEST = 0.75  # phones
GROWN = 10**9  # a step behind every curriculum
PARTS = 64  # utterances that a prompt is joined of, at most


class SampleMaker:
    """Samples of the model's tasks from one split.

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
        self.corpus, self.train, self.model = corpus, train, model
        self.codes, self.space, self.augment = codes, space, augment
        self.levels = corpus.silence.shape[0]
        self.held_out_seed, self.held_out_fraction = held_out_seed, held_out_fraction
        self.kind, self.layout = KINDS[model.kind], Layout.of(model, self.levels, codes, 0, residual=corpus.residual)
        weights = np.array(level_shares(model.level_weights, self.levels, residual=corpus.residual))
        if self.kind.modes == ("level",):
            weights[0] = 0.0
        self.level_p = weights / weights.sum()
        self.first_modes = [mode for mode in self.kind.modes if mode != "level"]
        choices = {"ordered": "one", "alike": "all"}
        self.alike = (
            "mask" in self.kind.modes
            and self.kind.frames
            and by_order("train.mask_levels", train.mask_levels, corpus.residual, **choices) == "all"
        )
        mix = learnable(train.task_mix(model), corpus, training=augment)
        self.tasks, shares = list(mix), np.array(list(mix.values()))
        self.task_p = shares / shares.sum()

    @property
    def limit(self) -> int:
        """Frames of the longest response."""
        return int(self.train.max_response_seconds * self.corpus.frame_rate)

    def chosen(self) -> np.ndarray | None:
        """Int64 [n], the utterances that are neither too short nor too long; None for all of them.

        Raises:
            ValueError: none is.
        """
        frames, rate = self.corpus.utterances.codes.lengths // self.levels, self.corpus.frame_rate
        fits = (frames <= self.limit) & (frames >= self.train.min_response_seconds * rate)
        if not fits.any():
            raise ValueError(
                f"train.min_response_seconds {self.train.min_response_seconds} and train.max_response_seconds "
                f"{self.train.max_response_seconds} leave no utterance: they have {frames.min() / rate:.2f} to "
                f"{frames.max() / rate:.2f} s"
            )
        return None if fits.all() else np.flatnonzero(fits)

    def make(self, index: int, step: int, rng: np.random.Generator) -> Sample:
        """The sample around utterance ``index``, one of the ``chosen``; the optimizer step ``step`` places it in the
        joining curriculum."""
        clips, gaps = self._clips(index, step, rng)
        phones, response, spoken = self._join(clips, gaps, rng)
        prompt = self._prompt(clips, rng)
        task = self._task(clips, rng)
        mode, level = self._mode(rng) if TASKS[task].parallel else ("ar", 0)
        language = self.model.language_id(clips[0].language)
        if self.augment and TASKS[task].parallel:
            if rng.random() < self.train.text_dropout:
                phones, spoken, language = phones[:0], None, 0
            if rng.random() < self.train.prompt_dropout:
                prompt = prompt[:, :0]
            if language and rng.random() < self.train.language_dropout:
                language = 0
        asked = corrupted = None
        if TASKS[task].parallel:
            if self.train.level_loss == "one":
                asked = int(rng.choice(self.levels, p=self.level_p))
            corrupted = self._seen(response, mode, level, asked, rng)
        spoken = None if mode == "level" else spoken
        sample = Sample(phones, prompt, response, level, corrupted, spoken, mode, language=language, asked=asked)
        if task == "tts":
            return sample
        text = " ".join(clip.text for clip in clips)
        kind = TASKS[task].mixture
        given = Given(sample, text, self._prompt(clips, rng, noisy=kind == "noise"), rng)
        if kind is not None:
            pauses = [round(gap * self.corpus.frame_rate) for gap in gaps]
            mixed, noise = join_mixtures(response, [self.corpus.mixtures[kind][clip.index] for clip in clips], pauses)
            given = replace(given, mixed=mixed, noise=noise)
        return MAKERS[task](given)

    def reading(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[Utterance]]:
        """What is to be read aloud around utterance ``index``, with a prompt, and the clips that it was made of."""
        clips, gaps = self._clips(index, GROWN, rng)
        phones, response, _ = self._join(clips, gaps, rng)
        prompt, language = self._prompt(clips, rng), self.model.language_id(clips[0].language)
        return Sample(phones, prompt, response, mode=self.first_modes[0], language=language), clips

    def _task(self, clips: Sequence[Utterance], rng: np.random.Generator) -> str:
        """One of those that can be made of these clips: some may have no mixture with another voice, or nothing else
        of their speaker for a prompt."""
        if len(self.tasks) == 1:
            return self.tasks[0]
        shares, rows = self.task_p, [TASKS[task] for task in self.tasks]
        mixed = {
            kind: kind is None or all(clip.index in self.corpus.mixtures[kind] for clip in clips)
            for kind in {row.mixture for row in rows}
        }
        alone = len(self.corpus.utterances.groups["speaker"].like(clips[0].index)) == 1
        there = [mixed[row.mixture] and not (alone and row.needs_prompt) for row in rows]
        if not all(there):
            shares = shares * there
            shares = shares / shares.sum()
        return self.tasks[int(rng.choice(len(self.tasks), p=shares))]

    def _mode(self, rng: np.random.Generator) -> tuple[Mode, int]:
        """How the response is to be made, and the level of mode ``level``."""
        level = int(rng.choice(self.levels, p=self.level_p)) if "level" in self.kind.modes else 0
        if level > 0:
            return "level", level
        modes = self.first_modes
        return modes[int(rng.integers(len(modes)))] if len(modes) > 1 else modes[0], 0

    def _clips(self, index: int, step: int, rng: np.random.Generator) -> tuple[list[Utterance], list[float]]:
        """An utterance, or it and those to be joined behind it, and the seconds of the pauses between them."""
        if self.train.join is None:
            return [self.corpus.utterances[index]], []
        clips = self._joined(index, self.train.join, step, rng)
        return clips, [rng.uniform(*self.train.join.gap_seconds) for _ in clips[1:]]

    def _joined(self, index: int, join: JoinConfig, step: int, rng: np.random.Generator) -> list[Utterance]:
        first = self.corpus.utterances[index]
        pool = self.corpus.utterances.groups["tongue"].like(index)
        spoken = len(self.corpus.utterances.groups["speaker"].like(index))
        least, most = join.min_clips, join.max_clips
        if step < join.curriculum_steps:
            least = 1
            most = min(most, 2) + max(0, most - 2) * step // join.curriculum_steps
        count = int(rng.integers(least, most + 1))
        if count == 1:
            return [first]
        for _ in range(20):
            clips = [first, *(self.corpus.utterances[i] for i in pool[rng.integers(len(pool), size=count - 1)])]
            if join.max_seconds is not None:
                ends = np.cumsum([clip.frames for clip in clips]) / self.corpus.frame_rate
                clips = clips[: max(1, int((ends <= join.max_seconds).sum()))]
            gaps = np.ceil(join.gap_seconds[1] * self.corpus.frame_rate) * np.arange(len(clips))
            clips = clips[: max(1, int((np.cumsum([clip.frames for clip in clips]) + gaps <= self.limit).sum()))]
            while len({clip.index for clip in clips}) == spoken > 1:  # something is left for the prompt
                clips.pop()
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
            said = clip.phones
            phones.append(said)
            codes.append(clip.codes)
            spoken.append(at + diagonal(len(said), clip.frames))
            at += len(said)
        return np.concatenate(phones), np.concatenate(codes, axis=1).astype(np.int64), np.concatenate(spoken, axis=1)

    def silence(self, seconds: float, rng: np.random.Generator) -> np.ndarray:
        """Codes int16 [L, T] of a pause, a random piece of the codec's silence."""
        frames, have = round(seconds * self.corpus.frame_rate), self.corpus.silence.shape[1]
        return self.corpus.silence[:, (rng.integers(have) + np.arange(frames)) % have]

    def _prompt(self, clips: Sequence[Utterance], rng: np.random.Generator, *, noisy: bool = False) -> np.ndarray:
        """Codes int64 [L, P] of the same speaker saying something else (in noise), cut to ``train.prompt_seconds``
        or joined of different utterances; shorter where there are no more, P = 0 where there is none."""
        pool = self.corpus.utterances.groups["speaker"].like(clips[0].index)
        near = () if self.corpus.similar is None else self.corpus.similar[clips[0].index]
        wanted = round(rng.uniform(*self.train.prompt_seconds) * self.corpus.frame_rate)
        others = pool[rng.choice(len(pool), size=min(len(pool), len(clips) + PARTS), replace=False)].tolist()
        if len(near) and rng.random() < self.train.similar_probability:
            others.insert(0, int(near[rng.integers(len(near))]))
        used = {clip.index for clip in clips}
        parts: list[np.ndarray] = []
        total = 0
        for index in others:
            if index in used:
                continue
            used.add(index)
            other = self.corpus.utterances[index]
            parts.append(self.corpus.mixtures["noise"][index].codes if noisy else other.codes)
            total += other.frames
            if total >= wanted:
                break
        if not parts:
            return np.zeros((self.levels, 0), dtype=np.int64)
        codes = np.concatenate(parts, axis=1)
        start = int(rng.integers(max(1, codes.shape[1] - wanted + 1)))
        return codes[:, start : start + wanted].astype(np.int64)

    def _seen(
        self, response: np.ndarray, mode: Mode, level: int, asked: int | None, rng: np.random.Generator
    ) -> np.ndarray | None:
        """What the model sees of the response; None for all of it."""
        if mode == "mask":
            return self._hide(response, asked, rng)
        if not self.augment:
            return None
        seen = self._corrupt(response, rng)
        if level and self.train.token_dropout is not None:
            seen[level - 1] = dropped(seen[level - 1], self.codes, self.train.token_dropout, rng)
        return seen

    def _hide(self, response: np.ndarray, asked: int | None, rng: np.random.Generator) -> np.ndarray:
        """The response with masks (n): of level 0, or of one level with all above it (SoundStorm, 2305.09636, section
        3.3), or of all levels alike (``train.mask_levels``)."""
        share = self.train.mask_share
        if share is None:
            share = float(np.cos(np.pi / 2 * rng.random()))  # MaskGIT's cosine schedule, 2202.04200
        seen = response.copy()
        frames = response.shape[1]
        if not self.kind.frames:
            hidden = [0]
        elif self.alike:
            hidden = list(range(self.levels))
        else:
            first = int(rng.choice(self.levels, p=self.level_p)) if asked is None else asked
            seen[first + 1 :] = self.codes
            hidden = [first]
        for level in hidden:
            at = rng.random(frames) < share
            at[int(rng.integers(frames))] = True  # something is always asked
            seen[level, at] = self.codes
        return seen

    def _corrupt(self, response: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The response with some frames random and some stretches masked (n)."""
        frames, seen = response.shape[1], response.copy()
        random = rng.random(frames) < self.train.input_random
        seen[:, random] = rng.integers(self.codes, size=(self.levels, int(random.sum())))
        seen[:, spans(frames, self.train.input_mask, self.train.mask_frames, rng)] = self.codes
        return seen


def spans(frames: int, share: float, lengths: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Bool [T]: stretches of ``lengths`` (shortest, longest) frames, at random places, that cover about ``share``."""
    mean = (lengths[0] + lengths[1]) / 2
    # Each frame starts a stretch with the chance that leaves 1 - share of the frames in none of them.
    starts = np.flatnonzero(rng.random(frames) < 1 - (1 - share) ** (1 / mean))
    out = np.zeros(frames, dtype=bool)
    for start, length in zip(starts, rng.integers(lengths[0], lengths[1] + 1, size=len(starts)), strict=True):
        out[start : start + length] = True
    return out


def dropped(codes: np.ndarray, count: int, settings: TokenDropoutConfig, rng: np.random.Generator) -> np.ndarray:
    """Codes int64 [T] of 0..``count`` with a share nudged to a neighbouring code, or masked (``count``)."""
    chosen = rng.random(len(codes)) < settings.rate
    if settings.form == "mask":
        return np.where(chosen, count, codes)
    step = np.where(rng.random(len(codes)) < 0.5, -1, 1)
    step = np.where(codes == 0, 1, np.where(codes >= count - 1, -1, step))  # a nudge at an end goes inward
    return np.where(chosen & (codes < count), codes + step, codes)


def diagonal(phones: int, frames: int) -> np.ndarray:
    """First and last phone int64 [2, T] that may be spoken in each frame: a band around an even pace."""
    centre = (np.arange(frames) + 0.5) / frames * phones
    width = max(NARROWEST, BAND * phones)
    band = np.floor(np.stack((centre - width, centre + width))).astype(np.int64)
    return band.clip(0, phones - 1)
