"""Batches on their way to training: made ahead by other processes, in the order of the steps.

Workers make whole pools (``vall_e.data.batches``) in turn. A batch depends on (seed, step) alone, so there are the same
with any number of workers. They are forked: the corpus is mapped, and its pages are shared.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vall_e.config import TrainConfig
from vall_e.data.batches import Batches
from vall_e.data.curriculum import Curriculum
from vall_e.models.packing import Layout, Packed, pack
from vall_e.training.memory import split

VALIDATION_BATCHES = 4  # one pool of them, so that nothing is made that is not looked at
LENGTHS = 16  # batches are as long as a multiple of this: few shapes, see vall_e.data.batches
AHEAD = 2  # pools that a worker makes before they are asked for

Arrays = tuple[np.ndarray, ...]  # the fields of a packed batch: unlike tensors they need no file each to be sent


class _Pools(Dataset):
    """Packed batches of the steps ``first`` to ``last``, a pool (or the part within) each."""

    def __init__(self, batches: Batches | Curriculum, layout: Layout, first: int, last: int) -> None:
        self.batches, self.layout, self.first, self.last = batches, layout, first, last

    def __len__(self) -> int:
        pool = self.batches.pool
        return -(-self.last // pool) - self.first // pool

    def __getitem__(self, index: int) -> list[Arrays]:
        pool = self.batches.pool
        start = (self.first // pool + index) * pool
        steps = range(max(start, self.first), min(start + pool, self.last))
        return [self._arrays(pack(self.batches.batch(step), self.layout, LENGTHS)) for step in steps]

    @staticmethod
    def _arrays(packed: Packed) -> Arrays:
        return tuple(getattr(packed, name).numpy() for name in packed.__dataclass_fields__)


def _deaf(_: int) -> None:
    """What a signal to the whole group (Ctrl-C, a cancelled flow) asks is for the process that trains to do: it needs
    the batches that are under way, and ends its workers itself. When it is killed, they notice."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_they_are(pool: list[Arrays]) -> list[Arrays]:
    return pool


class Feed(Iterator[Packed]):
    """Packed batches of the steps ``first`` to ``last`` (exclusive).

    Args:
        workers: processes that make them ahead; 0: made when they are asked for.

    Attributes:
        step: of the next batch.
        waited: seconds that whoever asked has waited.
    """

    def __init__(self, batches: Batches | Curriculum, layout: Layout, first: int, last: int, workers: int) -> None:
        loader = DataLoader(
            _Pools(batches, layout, first, last),
            batch_size=None,
            collate_fn=_as_they_are,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_deaf if workers else None,
            generator=torch.Generator(),  # nothing is drawn from it, and nothing from torch's own
        )
        self.step, self.waited = first, 0.0
        self._arrays = (arrays for pool in loader for arrays in pool)

    def __next__(self) -> Packed:
        began = time.perf_counter()
        arrays = next(self._arrays)
        self.waited += time.perf_counter() - began
        self.step += 1
        return Packed(*map(torch.from_numpy, arrays))

    def close(self) -> None:
        """End the workers."""
        self._arrays.close()


class _Stretch:
    """The next ``count`` batches of a feed that goes on behind them, each in so many ``pieces``."""

    def __init__(self, feed: Feed, count: int, pieces: int = 1) -> None:
        self.feed, self.count, self.pieces = feed, count, pieces

    def __len__(self) -> int:
        return self.count * self.pieces

    def __iter__(self) -> Iterator[Packed]:
        for _ in range(self.count):
            yield from split(next(self.feed), self.pieces)


class Data(pl.LightningDataModule):
    """Training batches of the current stretch, and a fixed set of validation batches.

    Args:
        train, val: of the whole run; of several processes each takes its share of ``train``.

    Attributes:
        waited: seconds that training waited for batches, those before a resume included.
        pieces: that each batch of training comes in.
    """

    def __init__(self, train: Batches | Curriculum, val: Batches | None, layout: Layout, config: TrainConfig) -> None:
        super().__init__()
        self.train_batches, self.val_batches, self.layout, self.config = train, val, layout, config
        self._feed: Feed | None = None
        self._before = 0.0
        self.pieces = 1

    @property
    def waited(self) -> float:
        return self._before + (self._feed.waited if self._feed else 0.0)

    def setup(self, stage: str) -> None:
        self.train_batches = self.train_batches.share(self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> _Stretch:
        stretch, accumulate, steps = self.config.checkpoint_every, self.config.accumulate, self.config.max_steps
        first = self.trainer.global_step
        last = min((first // stretch + 1) * stretch, steps)
        if self._feed is None or self._feed.step != first * accumulate:
            self.teardown("fit")
            workers = self.config.loader_workers
            self._feed = Feed(self.train_batches, self.layout, first * accumulate, steps * accumulate, workers)
        return _Stretch(self._feed, (last - first) * accumulate, self.pieces)

    def val_dataloader(self) -> list[Any] | _Stretch:
        if self.val_batches is None:
            return []
        return _Stretch(Feed(self.val_batches, self.layout, 0, VALIDATION_BATCHES, 0), VALIDATION_BATCHES)

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["waited"]

    def teardown(self, stage: str) -> None:
        self._before = self.waited
        if self._feed is not None:
            self._feed.close()
            self._feed = None
