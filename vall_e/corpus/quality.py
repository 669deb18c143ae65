"""Rejects: the rows that say what dropped an utterance.

No utterance disappears: a stage that drops one writes it to its ``rejects.parquet``, and fails where too many go.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vall_e.corpus.schema import REJECTS, write_table

Row = dict[str, Any]
Fault = tuple[str, str, str]  # rule, what was found, what is allowed
UNREAD = frozenset({"missing", "empty", "unreadable", "truncated", "not_finite"})  # rules of ``AudioError``


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


def may_be_read(faults: Iterable[tuple[str | None, str]]) -> bool:
    """A recording that could not be read is there: it may have come back since, or was made whole.

    Stages ask before they trust what an earlier run found, for a share that was away is true of that hour only.

    Args:
        faults: rule, None for none, and the recording's path.
    """
    return any(rule in UNREAD and os.access(path, os.R_OK) for rule, path in faults)


def check_reject_rate(
    kept: int, rejected: int, limit: float, stage: str, rows: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Fail a stage that drops too much.

    Args:
        kept, rejected: numbers of utterances.
        limit: the highest share of rejects, 0..1.
        stage: its name, for the message.
        rows: the rejects; the message's first line counts the rules, an example of each follows.

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
    counts = ", ".join(f"{rule} {count}" for rule, count in count_rules(rows).items())
    told = f" ({counts})" if counts else ""
    raise RejectRateError(f"{stage}: {reason}{told}; mend the recordings or the parameters{''.join(lines)}")


def _said(value: object) -> str | None:
    return None if value is None else _printable(str(value))[:500]


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
