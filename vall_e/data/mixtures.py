"""What a corpus can teach: which tasks have something to learn from, and the mixtures of joined clips.

Dimensions: L levels, R response frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vall_e.data.corpus import CodesCorpus, Mixture
from vall_e.tasks import TASKS

_REMEDIES = {
    "noise": "set encode.mixtures.noise to a folder of noise recordings",
    "overlap": "set encode.mixtures.overlap_db (two speakers must be left in the split)",
    None: "give speakers a second utterance for the prompt",
}


def learnable(weights: Mapping[str, float], corpus: CodesCorpus, *, training: bool) -> dict[str, float]:
    """The tasks that ``corpus`` holds samples of, with their weights; in training these must be all.

    Raises:
        ValueError: mixtures are missing, or every speaker's second utterance, with the remedy.
    """
    counts = {task: _count(task, corpus) for task in weights}
    lacking = [task for task in weights if not counts[task]]
    if lacking and (training or len(lacking) == len(weights)):
        kind = TASKS[lacking[0]].mixture
        remedy = _REMEDIES[kind if not corpus.mixtures.get(kind) else None]
        raise ValueError(
            f"this corpus holds nothing to learn {', '.join(lacking)} from: {remedy} and run the encode stage "
            "again, or leave them out of model.tasks"
        )
    if max(counts.values()) < len(corpus.utterances):
        raise ValueError(
            f"some utterances have no mixture to learn {', '.join(weights)} from, or no other utterance of their "
            "speaker for its prompt: add a task without, such as tts, to model.tasks"
        )
    return {task: weight for task, weight in weights.items() if task not in lacking}


def _count(task: str, corpus: CodesCorpus) -> int:
    """Utterances that samples of ``task`` can be made of."""
    kind, speakers = TASKS[task].mixture, corpus.utterances.groups["speaker"]
    able = np.ones(len(corpus.utterances), dtype=bool)
    if kind is not None:
        able = corpus.mixtures[kind].starts >= 0 if kind in corpus.mixtures else ~able
    if TASKS[task].needs_prompt:
        able = able & (np.diff(speakers.starts)[speakers.code] > 1)
    return int(able.sum())


def join_mixtures(
    response: np.ndarray, mixtures: Sequence[Mixture], pauses: Sequence[int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The mixtures of clips, joined as the clips are.

    Args:
        response: int64 [L, R], the clips alone with pauses between them.
        mixtures: a clip each, all of one kind.
        pauses: frames between two clips.

    Returns:
        Codes int64 [L, R] of all at once, and of the noise alone, None where the other is a voice. In a pause the noise
        of the clip before goes on alone; another voice is silent.
    """
    mixed, noise, at = response.copy(), response.copy(), 0
    for mixture, pause in zip(mixtures, (*pauses, 0), strict=True):
        end = at + mixture.codes.shape[1]
        mixed[:, at:end] = mixture.codes
        if mixture.noise is not None:
            noise[:, at:end] = mixture.noise
            after = mixture.noise.take(np.arange(pause), axis=1, mode="wrap")
            mixed[:, end : end + pause] = noise[:, end : end + pause] = after
        at = end + pause
    return mixed, None if mixtures[0].noise is None else noise
