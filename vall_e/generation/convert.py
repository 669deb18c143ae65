"""Recordings said anew: in another voice (``vc``), without noise (``ns``), the noise alone (``sr``), one of two
speakers (``tse``).

Dimensions: N samples, L levels, l levels of the first pass, T frames, n codes per level.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vall_e.decoding import SamplingConfig
from vall_e.family import KINDS
from vall_e.generation.loaded import LoadedVoice
from vall_e.generation.recording import Changed, change, check_sound, language_id, text_ids
from vall_e.generation.speech import SpeechError
from vall_e.models.packing import Sample
from vall_e.tasks import TASKS


def convert(
    voice: LoadedVoice,
    source: np.ndarray,
    reference: np.ndarray,
    text: str | None = None,
    mask: float = 0.6,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    language: str | None = None,
) -> Changed:
    """What ``source`` says in the voice of ``reference``: demasking that starts from the source's codes.

    Args:
        source, reference: float32 [N] at the voice's sample rate.
        text: what the source says; with it the words survive a larger share of masks.
        mask: share of the frames whose codes are made anew. At 0 the source itself comes back through the codec, at 1
            only its length is left. Levels above the first pass's, which hold most of a voice, are all made anew.

    Raises:
        SpeechError: a voice that does not demask, a share outside 0..1, a recording without sound.
    """
    sampling = sampling or voice.config.sampling
    kind = voice.config.model.kind
    if "mask" not in KINDS[kind].modes:
        masked = ", ".join(name for name, k in KINDS.items() if "mask" in k.modes)
        raise SpeechError(f"a voice of kind {kind} cannot start from a recording's codes: take one of kind {masked}")
    if not 0.0 <= mask <= 1.0:
        raise SpeechError(f"the share of masks is between 0 (the source) and 1 (all anew), not {mask}")
    source = check_sound(source, "source")
    prompt, warnings = voice.prompt_codes(reference)
    ids, spoken = text_ids(voice, text, language), language_id(voice, language)
    task = "vc" if not len(ids) and "vc" in voice.config.model.all_tasks else "tts"
    if task == "tts" and not len(ids) and mask > 0:
        warnings.append("no text was given and the voice never learned vc: words may get lost (--text, or less --mask)")
    rng, shown, n = np.random.default_rng(seed), voice.model.layout.shown, voice.model.layout.codes

    def make(codes: np.ndarray) -> tuple[Sample, np.ndarray]:
        given, length = codes.copy(), codes.shape[1]
        anew = rng.permutation(length)[: round(mask * length)]
        given[:, anew] = n
        if len(anew):
            given[shown:] = n
        return Sample(ids, prompt, codes[:, :0], mode="mask", task=task, language=spoken), given

    longest = len(source) / voice.sample_rate
    if len(ids) and longest > sampling.max_seconds:
        raise SpeechError(
            f"a text belongs to one stretch of at most {sampling.max_seconds:g} s (sampling.max_seconds), and the "
            f"source has {longest:.1f} s: convert it a sentence at a time, or without a text"
        )
    return change(voice, source, make, sampling.model_copy(update={"first": "mask"}), seed, warnings)


def separate(
    voice: LoadedVoice,
    source: np.ndarray,
    task: str,
    reference: np.ndarray | None = None,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
) -> Changed:
    """A part of what is in ``source``: ``ns`` the speech without noise, ``sr`` the noise without speech, ``tse``
    the speaker of ``reference`` (SpeechX, 2308.06873).

    Args:
        source, reference: float32 [N] at the voice's sample rate.

    Raises:
        SpeechError: the voice never learned the task, or a recording has no sound.
    """
    if task not in voice.config.model.all_tasks:
        raise SpeechError(
            f"this voice never learned {task}: train one with {task} in model.tasks "
            f"(encode.mixtures has to make what it learns from: {TASKS[task].mixture})"
        )
    source = check_sound(source, "source")
    prompt, warnings = np.zeros((voice.config.levels, 0), dtype=np.int64), []
    if reference is not None:
        prompt, warnings = voice.prompt_codes(reference)
    blank = Sample(np.zeros(0, dtype=np.int64), prompt, prompt[:, :0], task=task, language=language_id(voice, None))

    def make(codes: np.ndarray) -> tuple[Sample, None]:
        return replace(blank, more={"source": codes}), None

    return change(voice, source, make, sampling or voice.config.sampling, seed, warnings, speech=task != "sr")
