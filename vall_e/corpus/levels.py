"""The gates that need only a recording's header and its levels, block by block, so that hours take no more memory."""

from __future__ import annotations

import numpy as np

from vall_e.corpus.quality import Fault
from vall_e.decoders import Header, mixed
from vall_e.preparation import IngestConfig

_FULL_SCALE = 0.999
_CANCELLED_DB = 20.0


class Levels:
    """Sums over the samples of a recording: of the mean of its channels, and of each of its C channels."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._each = np.zeros((2, 1))  # sums of samples and of their squares, [2, 1] and [2, C]
        self._full = np.zeros(1)

    def add(self, block: np.ndarray) -> None:
        """Take in a block, float [n, C], finite."""
        self.count += len(block)
        self._each = self._each + _sums(block)
        self._mean = self._each if block.shape[1] == 1 else self._mean + _sums(mixed(block)[:, None])
        self._full = self._full + (np.abs(block) >= _FULL_SCALE).sum(axis=0)

    @property
    def rms_db(self) -> float:
        """RMS about the mean (a constant is no sound) of the mean of the channels, dB below full scale; minus infinity
        for silence."""
        return _db(float(self._power(self._mean)[0]))

    @property
    def lost_db(self) -> float:
        """By how many dB the mean of the channels is quieter than that of sounds that have nothing to do with each
        other: where channels are each other's reverse, they cancel out."""
        each = float(self._power(self._each).sum()) / self._each.shape[1] ** 2
        return _db(each) - self.rms_db if each > 0 else 0.0

    @property
    def clipped(self) -> float:
        """Share of the samples at full scale in the channel that has the most, 0..1."""
        return float(self._full.max()) / self.count

    def _power(self, sums: np.ndarray) -> np.ndarray:
        mean, energy = sums / self.count
        power = energy - mean * mean
        # What is left of a constant after rounding, 120 dB below it, is nothing.
        return np.where((power > 1e-12 * mean * mean) & (power > 0), power, 0.0)


def _sums(block: np.ndarray) -> np.ndarray:
    return np.stack([block.sum(axis=0, dtype=np.float64), np.square(block, dtype=np.float64).sum(axis=0)])


def _db(power: float) -> float:
    return 10 * float(np.log10(power)) if power > 0 else -np.inf


def header_fault(header: Header, config: IngestConfig) -> Fault | None:
    """The first gate that a recording does not pass by what its header says, None for a good one."""
    if header.sample_rate < config.min_sample_rate:
        return "low_sample_rate", f"{header.sample_rate} Hz", f"{config.min_sample_rate} Hz"
    if header.frames is not None and config.max_seconds is not None:
        return _too_long(header.frames / header.sample_rate, config.max_seconds)
    return None


def levels_fault(levels: Levels, rate: int, config: IngestConfig) -> Fault | None:
    """As ``header_fault``, by all of its samples (at least one) at ``rate`` Hz."""
    seconds = levels.count / rate
    if seconds < config.min_seconds:
        return "too_short", f"{seconds:.3f} s", f"{config.min_seconds:g} s"
    if config.max_seconds is not None and (fault := _too_long(seconds, config.max_seconds)):
        return fault
    if levels.lost_db > _CANCELLED_DB:
        return (
            "cancelled",
            f"the mean of the channels is {levels.lost_db:.0f} dB too quiet",
            "one channel, or equal signs",
        )
    if levels.rms_db < config.min_rms_db:
        return "silent", f"{levels.rms_db:.1f} dB", f"{config.min_rms_db:g} dB"
    if levels.clipped > config.max_clipped:
        return "clipped", f"{levels.clipped:.3f}", f"{config.max_clipped:g}"
    return None


def _too_long(seconds: float, most: float) -> Fault | None:
    return ("too_long", f"{seconds:.1f} s", f"{most:g} s") if seconds > most else None
