"""Batches of a curriculum (``train.stages``): a function of (seed, step) as those of one regimen are.

Each stage has batches of its own, made by its settings; which stage a batch is of, its number tells. A pool in which a
stage ends is made by both, and each gives its part, so a change is exact to the step. Step numbers here are batches':
``train.accumulate`` of them make an optimizer step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from vall_e.config import ModelConfig, TrainConfig
from vall_e.data.batches import Batches
from vall_e.data.samples import SampleMaker
from vall_e.models.packing import Sample


class Curriculum:
    """Has what ``Batches`` has.

    Args:
        stages: the number of a stage's first batch, from 0 on rising, and the stage's batches.
    """

    def __init__(self, stages: Sequence[tuple[int, Batches]]) -> None:
        self.firsts, self.stages = [first for first, _ in stages], [batches for _, batches in stages]
        self.maker, self.steps_per_epoch = self.stages[-1].maker, self.stages[-1].steps_per_epoch
        self.left_out, self.pool = self.stages[-1].left_out, self.stages[-1].pool

    def share(self, rank: int, world: int) -> Curriculum:
        """What process ``rank`` of the ``world`` that train together takes of these batches."""
        return Curriculum([(f, b.share(rank, world)) for f, b in zip(self.firsts, self.stages, strict=True)])

    def batch(self, step: int) -> list[Sample]:
        """Batch number ``step``, from 0."""
        return self.stages[bisect_right(self.firsts, step) - 1].batch(step)


def batches_of(
    train: TrainConfig, model: ModelConfig, maker: Callable[[TrainConfig, ModelConfig], SampleMaker]
) -> Batches | Curriculum:
    """What a training with these settings sees.

    Args:
        maker: of samples for the settings of a stage.

    Raises:
        ValueError: of some stage, there is nothing to make batches of, or nothing to balance.
    """
    stages = []
    for first, settings, stage in train.phases:
        named = {} if stage is None or stage.level_weights is None else {"level_weights": stage.level_weights}
        made = Batches(maker(settings, model.model_copy(update=named)), train.batch_frames, train.seed)
        stages.append((first * train.accumulate, made))
    return stages[0][1] if len(stages) == 1 else Curriculum(stages)
