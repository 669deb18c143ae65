"""Gates and rejects: what drops an utterance, and the row that says so.

No utterance disappears: a stage that drops one writes it to its ``rejects.parquet``, and fails where too many go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vall_e.corpus.schema import REJECTS, write_table
from vall_e.preparation import IngestConfig

Row = dict[str, Any]
_FULL_SCALE = 0.999


class RejectRateError(ValueError):
    """A stage dropped more utterances than its limit allows."""


def reject(id: str, stage: str, rule: str, value: object = None, threshold: object = None) -> Row:
    """A row of the table REJECTS. Text that Parquet cannot hold (lone surrogates) is escaped."""
    return {"id": _printable(id), "stage": stage, "rule": rule, "value": _said(value), "threshold": _said(threshold)}


def write_rejects(rows: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Write ``rejects.parquet``, in the order of ids and rules."""
    return write_table(sorted(rows, key=lambda row: (row["id"], row["rule"])), REJECTS, path)


def count_rules(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Rule → number of rejects, the most frequent first."""
    return dict(sorted(Counter(row["rule"] for row in rows).items(), key=lambda item: (-item[1], item[0])))


def check_reject_rate(
    kept: int, rejected: int, limit: float, stage: str, rows: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Fail a stage that drops too much.

    Args:
        kept, rejected: numbers of utterances.
        limit: the highest share of rejects, 0..1.
        stage: its name, for the message.
        rows: the rejects; an example of each rule stands in the message.

    Raises:
        RejectRateError: more than ``limit`` was dropped, or nothing was kept.
    """
    total = kept + rejected
    if total and kept and rejected <= limit * total:
        return
    examples: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        examples.setdefault(row["rule"], row)
    lines = []
    for rule, count in count_rules(rows).items():
        row = examples[rule]
        found = f": {row['value']}" if row["value"] else ""
        allowed = f" (allowed: {row['threshold']})" if row["threshold"] else ""
        lines.append(f"\n  {rule} {count}, for example {row['id']}{found}{allowed}")
    if not total:
        raise RejectRateError(f"{stage}: there is no utterance to work on")
    reason = (
        "every utterance was rejected"
        if not kept
        else f"{rejected} of {total} utterances were rejected, more than {stage}.max_reject_rate {limit:g} allows"
    )
    raise RejectRateError(f"{stage}: {reason}; mend the recordings or the parameters{''.join(lines)}")


def waveform_fault(wav: np.ndarray, rate: int, config: IngestConfig) -> tuple[str, str, str] | None:
    """The first gate that a recording does not pass.

    Args:
        wav: float [N], finite.
        rate: Hz.

    Returns:
        Rule, what was found, what is allowed; None for a good recording.
    """
    fault = duration_fault(len(wav) / rate, config)
    if fault:
        return fault
    rms = float(np.sqrt(np.mean(np.square(wav, dtype=np.float64))))
    level = 20 * np.log10(rms) if rms > 0 else -np.inf
    if level < config.min_rms_db:
        return "silent", f"{level:.1f} dB", f"{config.min_rms_db:g} dB"
    clipped = float(np.mean(np.abs(wav) >= _FULL_SCALE))
    if clipped > config.max_clipped:
        return "clipped", f"{clipped:.3f}", f"{config.max_clipped:g}"
    return None


def duration_fault(seconds: float, config: IngestConfig) -> tuple[str, str, str] | None:
    """As ``waveform_fault``, for the gates on duration."""
    if seconds < config.min_seconds:
        return "too_short", f"{seconds:.3f} s", f"{config.min_seconds:g} s"
    if seconds > config.max_seconds:
        return "too_long", f"{seconds:.1f} s", f"{config.max_seconds:g} s"
    return None


def _said(value: object) -> str | None:
    return None if value is None else _printable(str(value))[:500]


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
