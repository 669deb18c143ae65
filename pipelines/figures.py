"""The figures in ``metrics/*.json``: those of the workspace, of a commit and of an experiment, and how they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from stages.tracking import numbers
from vall_e.config import ConfigError

Metrics = Mapping[str, Mapping[str, Any]]


def workspace_metrics(root: str | Path) -> dict[str, dict[str, Any]]:
    """The contents of ``metrics/*.json`` by name."""
    files = sorted((Path(root) / "metrics").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def metrics_at(root: str | Path, revision: str = "HEAD") -> dict[str, dict[str, Any]]:
    """The same at a git revision or in a DVC experiment; nothing where there is no commit or no figure yet."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        if repo.scm.no_commits:
            return {}
        shown = repo.metrics.show(revs=[revision], on_error="ignore")
    shown.pop("workspace", None)  # DVC adds it where it differs
    files = next((found.get("data", {}) for found in shown.values()), {})
    named = {PurePosixPath(file): found["data"] for file, found in files.items() if "data" in found}
    return {file.stem: figures for file, figures in named.items() if file.parent.name == "metrics"}


def metric_rows(now: Metrics, last_run: Metrics, last_commit: Metrics) -> list[dict[str, Any]]:
    """The figures that are not what they were.

    Returns:
        rows with ``metric`` (dotted name), ``last commit``, ``last run``, ``now`` and ``change``: against the last
        commit, as ``dvc metrics diff`` says it, or where that has no such figure against the last run.
    """
    flat_now, flat_run, flat_commit = numbers(now), numbers(last_run), numbers(last_commit)
    rows = []
    for name in sorted(set(flat_now) | set(flat_run) | set(flat_commit)):
        here, run, commit = flat_now.get(name), flat_run.get(name), flat_commit.get(name)
        if here == run == commit:
            continue
        before = run if commit is None else commit
        change = None if here is None or before is None else round(here - before, 6)
        rows.append({"metric": name, "last commit": commit, "last run": run, "now": here, "change": change})
    return rows


def reject_rows(metrics: Metrics, stages: Sequence[str]) -> list[dict[str, Any]]:
    """What each rule of each stage dropped: ``stage``, ``rule``, ``utterances`` and ``share`` of those that entered."""
    rows = []
    for stage in stages:
        rejected = metrics.get(stage, {}).get("rejected")
        rejected = rejected if isinstance(rejected, Mapping) else {}
        entered = (metrics.get(stage, {}).get("kept") or 0) + sum(rejected.values())
        rows += [
            {"stage": stage, "rule": rule, "utterances": count, "share": f"{count / entered:.1%}"}
            for rule, count in rejected.items()
            if count
        ]
    return rows


def figure(metrics: Metrics, name: str) -> float:
    """One figure by its dotted name (``train.val.loss``), or in short: ``wer`` is ``summary.wer.model``, and a stage
    whose name says nothing more is left out (``val.loss``).

    Raises:
        ConfigError: there is no such figure, or there are several.
    """
    flat = numbers(metrics)
    for key in (name, f"summary.{name}.model", f"summary.{name}"):
        if key in flat:
            return flat[key]
    found = [key for stage in metrics if (key := f"{stage}.{name}") in flat]
    if len(found) == 1:
        return flat[found[0]]
    if found:
        raise ConfigError(f"metrics/*.json hold several figures {name!r}: say which of {', '.join(sorted(found))}")
    raise ConfigError(f"metrics/*.json hold no figure {name!r}; there are {', '.join(sorted(flat)) or 'none'}")
