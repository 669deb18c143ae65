"""Gates: each limit counts, the champion is compared by the interval, what was not measured passes nothing."""

from __future__ import annotations

import pytest

from stages.gates import figures_of, judge
from stages.registry import as_tag, figures_in
from vall_e.config import ConfigError, parse_params
from vall_e.registry import GatesConfig

OFF = dict.fromkeys(GatesConfig.model_fields)


def figure(value: float, margin: float = 0.0) -> dict[str, float]:
    return {"value": value, "low": value - margin, "high": value + margin}


@pytest.mark.parametrize(
    "gate, limit, value, passed",
    [
        ("max_wer", 0.3, 0.3, True),
        ("max_wer", 0.3, 0.31, False),
        ("max_cer", 0.1, 0.2, False),
        ("min_similarity", 0.7, 0.7, True),
        ("min_similarity", 0.7, 0.69, False),
        ("min_dnsmos", 3.0, 2.5, False),
    ],
)
def test_a_limit_is_held_against_its_own_figure(gate, limit, value, passed):
    (verdict,) = judge(GatesConfig(**(OFF | {gate: limit})), {gate[4:]: figure(value)}, None)
    assert (verdict.gate, verdict.passed) == (gate, passed)
    assert f"{value:g}" in verdict.said and f"{limit:g}" in verdict.said


def test_what_was_not_measured_fails_and_says_so():
    (verdict,) = judge(GatesConfig(**(OFF | {"min_dnsmos": 3.0})), {"wer": figure(0.1)}, None)
    assert not verdict.passed and verdict.said == "not measured (asked for: 3)"


@pytest.mark.parametrize(
    "mine, theirs, allowed, passed",
    [
        (figure(0.21, 0.03), figure(0.20, 0.04), 0.0, False),  # within the noise, and yet a step down
        (figure(0.26, 0.03), figure(0.20, 0.04), 0.07, True),
        (figure(0.10), figure(0.20), 0.0, True),
        (figure(0.21), figure(0.20), 0.0, False),
    ],
)
def test_a_candidate_must_not_be_worse_than_the_champion_by_more_than_allowed(mine, theirs, allowed, passed):
    gates = GatesConfig(**(OFF | {"max_worse": allowed}))
    (verdict,) = judge(gates, {"wer": mine}, {"wer": theirs})
    assert verdict.passed == passed
    assert judge(gates, {"wer": mine}, None) == []


def test_the_difference_to_the_champion_is_said_with_its_interval():
    gates = GatesConfig(**(OFF | {"max_worse": 0.0}))
    (verdict,) = judge(gates, {"wer": figure(0.26, 0.03)}, {"wer": figure(0.20, 0.04)})
    assert verdict.said == "WER 0.26, the champion's 0.2: +0.06 ± 0.05 (allowed: 0)"


def test_a_champion_without_figures_and_too_few_utterances_are_said_with_what_to_do():
    gates = GatesConfig(**(OFF | {"max_worse": 0.0}))
    (verdict,) = judge(gates, {"wer": figure(0.2)}, {})
    assert not verdict.passed and "move the alias champion" in verdict.said and "max_worse" in verdict.said
    few = {"wer": {"value": 0.2, "low": None, "high": None}}
    assert figures_in({"wer": as_tag(few["wer"]), "cer": as_tag(figure(0.5, 0.25))}) == few | {"cer": figure(0.5, 0.25)}
    assert judge(gates, few, few)[0].said == "WER 0.2, the champion's 0.2: +0 (allowed: 0)"


def test_figures_are_the_models_own_and_unmeasured_ones_are_left_out():
    evaluate = {"wer": {"model": figure(0.2), "recording": figure(0.0)}, "kept": 3}
    score = {"similarity": {"model": figure(0.7)}, "dnsmos": {"model": None}}
    assert figures_of(evaluate, score) == {"wer": figure(0.2), "similarity": figure(0.7)}


@pytest.mark.parametrize("name", ["a/b", "models:/x", "x@champion", "a+b", "Anna's", ""])
def test_a_name_that_mlflow_would_not_take_everywhere_is_refused(name):
    with pytest.raises(ConfigError, match="registry.name"):
        parse_params({"registry": {"name": name}})
