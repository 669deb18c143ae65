"""Gates on measures: which utterances a threshold drops, and which of several takes of one sound is kept.

Gates judge figures that were measured before (schema MEASURES) and hear nothing, so that a threshold is cheap to
change. An utterance is dropped by the first rule that it breaks; duplicates are looked for among those that pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vall_e.corpus.quality import Fault, Row
from vall_e.preparation import QualityConfig

RATE_GROUP = 20  # utterances of a speaker and language below which there are no outliers
# Measures a gate of which is one comparison: rule, column, parameter, how a figure is said.
_LEAST = (
    ("too_short", "seconds", "min_seconds", "{:.3f} s"),
    ("quiet", "lufs", "min_lufs", "{:.1f} LUFS"),
    ("noisy", "snr_db", "min_snr_db", "{:.1f} dB"),
    ("bandwidth", "bandwidth_hz", "min_bandwidth_hz", "{:.0f} Hz"),
    ("dnsmos", "dnsmos", "min_dnsmos", "{:.2f}"),
    ("language", "language_probability", "min_language_probability", "{:.2f}"),
)
_MOST = (
    ("too_long", "seconds", "max_seconds", "{:.1f} s"),
    ("clipped", "clipped", "max_clipped", "{:.4f} of the samples"),
    ("flat_tops", "flat_tops", "max_flat_tops", "{:.4f} of the samples"),
)


def faults(rows: Sequence[Row], config: QualityConfig) -> dict[str, Fault]:
    """Id → the first rule that an utterance breaks.

    Args:
        rows: of schema MEASURES, with speaker, language and sample_rate besides. A measure that is null breaks no rule,
            but for the loudness: null is silence.
    """
    limits = _rate_limits(rows, config.rate_iqr)
    found = {row["id"]: _fault(row, config, limits.get((row["speaker"], row["language"]))) for row in rows}
    return {name: fault for name, fault in found.items() if fault is not None}


def _fault(row: Row, config: QualityConfig, rates: tuple[float, float] | None) -> Fault | None:
    if row["lufs"] is None:
        return "silent", "silence", "a sound"
    for bounds, sign in ((_LEAST, 1), (_MOST, -1)):
        for rule, column, parameter, said in bounds:
            value, limit = row[column], getattr(config, parameter)
            if value is not None and limit is not None and sign * value < sign * limit:
                return _named(rule, row, said.format(value), said.format(limit))
    rate = row["characters_per_second"]
    if rates is not None and rate and not rates[0] <= rate <= rates[1]:
        return "rate", f"{rate:.1f} characters/s", f"{rates[0]:.1f} to {rates[1]:.1f} for {row['speaker']}"
    return None


def _named(rule: str, row: Row, value: str, limit: str) -> Fault:
    """Sound of a low rate that is stored at a higher one has a name of its own: telephone speech, mostly."""
    if rule == "bandwidth" and row["content_rate"] < row["sample_rate"]:
        return "upsampled", f"{row['content_rate'] / 1000:g} kHz content in {row['sample_rate'] / 1000:g} kHz", limit
    return rule, value, limit


def _rate_limits(rows: Iterable[Row], width: float | None) -> dict[tuple[str, str], tuple[float, float]]:
    """(speaker, language) → lowest and highest rate, ``width`` interquartile ranges beyond the quartiles (of logs)."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["characters_per_second"] and row["lufs"] is not None:
            groups[row["speaker"], row["language"]].append(row["characters_per_second"])
    out = {}
    for key, rates in groups.items():
        if width is not None and len(rates) >= RATE_GROUP:
            low, high = np.quantile(np.log(rates), [0.25, 0.75])
            out[key] = float(np.exp(low - width * (high - low))), float(np.exp(high + width * (high - low)))
    return out


def exact_duplicates(rows: Iterable[Row]) -> dict[str, str]:
    """Id → the utterance with the same samples that comes first, for all but that one."""
    first: dict[str, str] = {}
    out = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        kept = first.setdefault(row["samples"], row["id"])
        if kept != row["id"]:
            out[row["id"]] = kept
    return out


def chosen(pairs: Iterable[tuple[str, str, float]], rows: Mapping[str, Row]) -> dict[str, tuple[str, float]]:
    """Of takes of one sound the one to keep: id → (the kept one, share of equal bits) of those to drop.

    The one with the widest band is kept, then the one with the most samples a second, then the first by id. What is
    like a dropped one but not like a kept one stays.

    Args:
        pairs: of ids, with the share of equal bits.
        rows: by id; bandwidth_hz and sample_rate are read.
    """
    near: dict[str, dict[str, float]] = defaultdict(dict)
    for one, other, bits in pairs:
        near[one][other] = near[other][one] = bits
    out: dict[str, tuple[str, float]] = {}
    for name in sorted(near, key=lambda name: _preference(rows[name])):
        if name not in out:
            out |= {
                other: (name, bits)
                for other, bits in near[name].items()
                if other not in out and _later(rows, name, other)
            }
    return out


def _preference(row: Mapping[str, Any]) -> tuple[float, float, str]:
    return -round(row["bandwidth_hz"] / 1000), -row["sample_rate"], row["id"]


def _later(rows: Mapping[str, Row], name: str, other: str) -> bool:
    return _preference(rows[name]) < _preference(rows[other])
