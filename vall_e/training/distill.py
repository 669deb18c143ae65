"""A teacher: a trained voice whose distributions a smaller one learns (1503.02531; ``train.distill``)."""

from __future__ import annotations

from pathlib import Path

import torch

from vall_e.family import KINDS
from vall_e.models.checkpoint import load_model, same_codec
from vall_e.models.losses import Guide
from vall_e.models.packing import Packed
from vall_e.models.vall_e import VallE
from vall_e.regimen import DistillConfig
from vall_e.text.tokenizer import Tokenizer


class Teacher:
    """Says what it thinks of a batch. No module: neither its weights nor their average belong to what is trained."""

    def __init__(self, model: VallE, weight: float, temperature: float) -> None:
        self.model = model.eval().requires_grad_(False)
        self.weight, self.temperature = weight, temperature

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    def __call__(self, packed: Packed) -> Guide:
        """For a batch on the teacher's device."""
        with torch.no_grad():
            return Guide(self.model.logits(packed), self.weight, self.temperature)


def load_teacher(
    config: DistillConfig, student: VallE, tokenizer: Tokenizer, root: Path, codec: Path, out: Path
) -> Teacher:
    """The teacher of ``student``, frozen.

    Args:
        tokenizer: of the corpus.
        root: the project's folder.
        codec: of the corpus, a folder.
        out: the folder that the student will replace.

    Raises:
        FileNotFoundError: a file of the voice is missing.
        ValueError: it reads other sequences than the student, or gives their ids another meaning.
    """
    folder = root / config.voice
    if folder.resolve() == out.resolve():
        raise ValueError(f"train.distill.voice: the stage replaces {folder}: copy that voice and name the copy")
    model, _ = load_model(folder)
    wrong = _differences(student, model)
    theirs = Tokenizer.load(folder / "tokenizer.json")
    if theirs != tokenizer:
        other = " ".join(sorted(set(theirs.phones) ^ set(tokenizer.phones))[:8])
        wrong.append(f"its phones are others than this corpus' ({other or 'in another order'})")
    if not same_codec(folder, codec):
        wrong.append(f"it speaks through another codec than {codec}")
    if wrong:
        raise ValueError(f"train.distill.voice: {folder} cannot teach this model: {'; '.join(wrong)}")
    return Teacher(model, config.weight, config.temperature)


def _differences(student: VallE, teacher: VallE) -> list[str]:
    """What keeps ``teacher`` from reading the batches of ``student``."""
    ours, theirs, wrong = student.config, teacher.config, []
    for name in ("positions", "causal_size", "sum_levels", "languages", "tones"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine != other:
            wrong.append(f"model.{name} is {mine} and the teacher's is {other}")
    if missing := sorted(set(ours.all_tasks) - set(theirs.all_tasks)):
        wrong.append(f"it has not learned {', '.join(missing)} (model.tasks)")
    kind, other = KINDS[ours.kind], KINDS[theirs.kind]
    if kind.frames != other.frames or set(kind.modes) - set(other.modes):
        wrong.append(f"model.kind is {ours.kind}, and the teacher's {theirs.kind} has not all of its passes")
    return wrong
