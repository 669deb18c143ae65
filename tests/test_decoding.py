"""Settings of decoding: what conflicts is refused with the remedy, and every setting says what it is."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vall_e.decoding import (
    BeamConfig,
    DemaskConfig,
    LevelParams,
    SamplingConfig,
    SamplingParams,
    SettingError,
    SpeculationConfig,
)

PLAIN = {"guidance": 0.0, "candidates": 1}
DRAFT = PLAIN | {"speculation": {"exit_layer": 1}}


@pytest.mark.parametrize("section", [
    SamplingParams, LevelParams, DemaskConfig, SpeculationConfig, BeamConfig, SamplingConfig,
])  # fmt: skip
def test_every_setting_describes_itself(section) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("settings, reason", [
    ({"mirostat": 2, "entropix": True}, "set mirostat 0 or entropix false"),
    ({"mirostat": 1, "top_p": 0.9}, "mirostat chooses what to draw from: .* top_p 1"),
    ({"mirostat": 1, "temperature": 0}, "temperature above 0"),
    ({"mirostat": 3}, "0, 1 or 2"),
    ({"entropix": True, "min_p": 0.1}, "entropix chooses what to draw from"),
    ({"entropix": True, "min_temperature": 0.1}, "entropix chooses what to draw from"),
    ({"min_temperature": 0.9, "temperature": 0.8}, "min_temperature 0.9 is not below temperature 0.8"),
    ({"min_temperature": 0.0, "temperature": 0.0}, "is not below temperature 0"),
    ({"dry_base": 0.5}, "greater than or equal to 1"),
    ({"banned": [-1]}, "greater than or equal to 0"),
    ({"temprature": 1.0}, "not permitted"),
])  # fmt: skip
def test_settings_in_conflict_are_refused(settings: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SamplingParams(**settings)


@pytest.mark.parametrize("settings, reason", [
    (DRAFT | {"guidance": 1.0}, "plain model"),
    (DRAFT | {"candidates": 2}, "plain model"),
    *((DRAFT | {"ar": ar}, "plain model") for ar in (
        {"repetition_penalty": 1.1}, {"length_penalty": 0.1}, {"dry_multiplier": 1.0}, {"mirostat": 2},
        {"entropix": True},
    )),
    (DRAFT | {"beam": {}}, "sampling.beam searches"),
    ({"beam": {"width": 2}}, "candidates 1"),
    ({"nar": {"repetition_penalty": 1.1}}, "not permitted"),
])  # fmt: skip
def test_decoding_in_conflict_is_refused(settings: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SamplingConfig(**settings)


def test_drafts_go_with_temperature_and_filters() -> None:
    config = SamplingConfig(**DRAFT, ar={"temperature": 1.1, "top_k": 5, "top_p": 0.9, "min_temperature": 0.3})
    assert not config.ar.remembers and config.speculation == SpeculationConfig(exit_layer=1)


def test_levels_above_are_greedy_by_default_and_only_they() -> None:
    config = SamplingConfig(nar={"top_k": 5})
    assert (config.nar.temperature, config.nar.top_k, config.ar.temperature) == (0.0, 5, 0.8)


@pytest.mark.parametrize("number", ["inf", "nan"])
@pytest.mark.parametrize("section, name", [
    (section, name) for section in (SamplingParams, LevelParams, DemaskConfig, BeamConfig, SamplingConfig)
    for name in ("temperature", "length_penalty", "guidance", "max_seconds", "choice_temperature")
    if name in section.model_fields
])  # fmt: skip
def test_settings_are_finite(section, name: str, number: str) -> None:
    with pytest.raises(ValidationError, match="finite"):
        section(**{name: float(number)})


def test_no_more_is_drafted_than_noise_is_drawn_ahead() -> None:
    assert SpeculationConfig(exit_layer=1, draft=31).draft == 31
    with pytest.raises(ValidationError, match="less than 32"):
        SpeculationConfig(exit_layer=1, draft=32)


TUNED = SamplingConfig(ar={"temperature": 0.6, "top_k": 7}, candidates=1, guidance=0.5, long_text={"clause_pause": 0.1})


@pytest.mark.parametrize("changes, wanted", [
    ({}, {}),
    ({"guidance": 2.0, "seed": 3}, {"guidance": 2.0, "seed": 3}),
    ({"ar.temperature": 0.2}, {"ar": {"temperature": 0.2, "top_k": 7}}),
    ({"ar": {"temperature": 0.2}}, {"ar": {"temperature": 0.2, "top_k": 7}}),
    ({"ar": SamplingParams(temperature=0.2)}, {"ar": {"temperature": 0.2}}),
    ({"beam.width": 2, "demask.steps": 3}, {"beam": {"width": 2}, "demask": {"steps": 3}}),
    ({"beam": {}}, {"beam": {}}),
])  # fmt: skip
def test_one_setting_changes_and_the_rest_stays(changes: dict, wanted: dict) -> None:
    before = TUNED.model_dump()
    whole = {"ar": {"temperature": 0.6, "top_k": 7}, "long_text": {"clause_pause": 0.1}, "candidates": 1}
    assert TUNED.with_(**changes) == SamplingConfig(**(whole | {"guidance": 0.5} | wanted))
    assert TUNED.model_dump() == before


@pytest.mark.parametrize("changes, reason", [
    ({"ar.temprature": 0.2}, r"sampling.ar.temprature 0.2: no such setting, is it ar.temperature\?"),
    ({"top_k": 2}, r"sampling.top_k 2: no such setting, is it ar.top_k\?"),
    ({"ar": {"topk": 2}}, r"sampling.ar.topk 2: no such setting, is it ar.top_k\?"),
    ({"guidance.x": 2}, "sampling.guidance.x 2: no such setting"),
    ({"guidance": {"x": 2}}, "sampling.guidance.x 2: no such setting"),
    ({"ar.top_p": 0.0}, "sampling.ar.top_p 0.0: Input should be greater than 0"),
    ({"ar": {"top_p": 0.0}}, "sampling.ar.top_p 0.0: Input should be greater than 0"),
    ({"candidates": "many"}, "sampling.candidates 'many': Input should be a valid integer"),
    ({"ar.mirostat": 2}, "^mirostat chooses what to draw from"),
    ({"beam.width": 2, "candidates": 2}, "^sampling.beam searches"),
])  # fmt: skip
def test_a_setting_that_cannot_be_is_named(changes: dict, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        TUNED.with_(**changes)
