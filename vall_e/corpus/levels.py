"""The gates that need only a recording's header and its levels, block by block, so that hours take no more memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vall_e.corpus.quality import Fault
from vall_e.decoders import Header
from vall_e.preparation import IngestConfig

_FULL_SCALE = 0.999


@dataclass
class Levels:
    """Sums over the samples of a recording."""

    count: int = 0
    total: float = 0.0
    energy: float = 0.0
    full: int = 0

    def add(self, block: np.ndarray) -> None:
        """Take in a block, float [n], finite."""
        self.count += len(block)
        self.total += float(block.sum(dtype=np.float64))
        self.energy += float(np.square(block, dtype=np.float64).sum())
        self.full += int((np.abs(block) >= _FULL_SCALE).sum())

    @property
    def rms_db(self) -> float:
        """RMS about the mean (a constant is no sound), dB below full scale; minus infinity for silence."""
        mean = self.total / self.count
        power = self.energy / self.count - mean * mean
        # What is left of a constant after rounding, 120 dB below it, is nothing.
        return 10 * float(np.log10(power)) if power > 1e-12 * (mean * mean) and power > 0 else -np.inf

    @property
    def clipped(self) -> float:
        """Share of the samples at full scale, 0..1."""
        return self.full / self.count


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
    if levels.rms_db < config.min_rms_db:
        return "silent", f"{levels.rms_db:.1f} dB", f"{config.min_rms_db:g} dB"
    if levels.clipped > config.max_clipped:
        return "clipped", f"{levels.clipped:.3f}", f"{config.max_clipped:g}"
    return None


def _too_long(seconds: float, most: float) -> Fault | None:
    return ("too_long", f"{seconds:.1f} s", f"{most:g} s") if seconds > most else None
