"""Whether a candidate may become the champion: the gates of ``registry.gates``, held against what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot
from typing import Any

from vall_e.registry import GatesConfig

Figure = Mapping[str, float | None]  # value, and low and high of the 95 % interval; None of too few utterances


@dataclass(frozen=True)
class Verdict:
    """One gate's answer: ``said`` has the figure and the limit, such as ``0.412 is above 0.3``."""

    gate: str
    passed: bool
    said: str


def figures_of(evaluate: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, Figure]:
    """The model's figures with their intervals, by measure, out of what the two stages measured."""
    tables = {name: evaluate.get(name) for name in ("wer", "cer")}
    tables |= {name: score.get(name) for name in ("similarity", "dnsmos")}
    return {name: table["model"] for name, table in tables.items() if table and table.get("model")}


def judge(gates: GatesConfig, mine: Mapping[str, Figure], champion: Mapping[str, Figure] | None) -> list[Verdict]:
    """The answers of all gates that are asked for.

    Args:
        mine: the candidate's figures, see ``figures_of``.
        champion: those of the champion; None where there is none, which is as good as one that is worse.
    """
    limits = (("wer", "max"), ("cer", "max"), ("similarity", "min"), ("dnsmos", "min"))
    asked = [(name, side, limit) for name, side in limits if (limit := getattr(gates, f"{side}_{name}")) is not None]
    verdicts = [_limited(f"{side}_{name}", mine.get(name), side, limit) for name, side, limit in asked]
    if gates.max_worse is not None and champion is not None:
        verdicts.append(_compared(mine.get("wer"), champion.get("wer"), gates.max_worse))
    return verdicts


def _limited(gate: str, figure: Figure | None, side: str, limit: float) -> Verdict:
    if figure is None:
        return Verdict(gate, False, f"not measured (asked for: {limit:g})")
    value = figure["value"]
    passed = value <= limit if side == "max" else value >= limit
    place = "above" if value > limit else "below" if value < limit else "at"
    return Verdict(gate, passed, f"{value:.4g} is {place} {limit:g}")


def _compared(mine: Figure | None, theirs: Figure | None, allowed: float) -> Verdict:
    """Fails where the difference is above what is allowed.

    Being within the noise is not enough: a row of champions, each a little worse than the one before, would go down for
    ever. What is said has the 95 % interval of the difference. The two were measured apart, so the half widths of their
    intervals add as those of independent normal variables; of too few utterances there is none.
    """
    if mine is None or theirs is None:
        remedy = (
            "evaluate it"
            if mine is None
            else (
                "move the alias champion to a version with figures, delete it, or set registry.gates.max_worse to null"
            )
        )
        said = f"WER of {'this model' if mine is None else 'the champion'} is not known: {remedy}"
        return Verdict("max_worse", False, said)
    worse = mine["value"] - theirs["value"]
    said = f"WER {mine['value']:.4g}, the champion's {theirs['value']:.4g}: {worse:+.4g}"
    if all(figure["low"] is not None for figure in (mine, theirs)):
        margin = hypot(*((figure["high"] - figure["low"]) / 2 for figure in (mine, theirs)))
        said += f" ± {margin:.4g}"
    return Verdict("max_worse", worse <= allowed, f"{said} (allowed: {allowed:g})")
