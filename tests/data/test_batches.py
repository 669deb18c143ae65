"""Samples and batches: pure in (seed, step), complete, and never of the test set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from tests.tiny import CODES, corpus, model_config, train_config
from vall_e.config import ConfigError, TrainConfig, parse_params
from vall_e.corpus.splits import held_out
from vall_e.data.batches import POOL, Batches, cut
from vall_e.data.samples import SampleMaker, diagonal, dropped
from vall_e.family import KINDS, level_shares
from vall_e.regimen import JoinConfig, TokenDropoutConfig

SPACE = 3


def _maker(
    train: TrainConfig,
    fraction: float = 0.3,
    *,
    augment: bool = True,
    kind: str = "ar-depth",
    residual: bool = True,
) -> SampleMaker:
    spoken = replace(corpus(), residual=residual)
    return SampleMaker(spoken, train, model_config(kind), CODES, SPACE, 0, fraction, augment=augment)


def test_batches_are_a_function_of_seed_and_step() -> None:
    one, two = Batches(_maker(train_config()), 120, 5), Batches(_maker(train_config()), 120, 5)
    forward = [one.batch(step) for step in range(20)]
    for step in (17, 3, 8, 0):
        for a, b in zip(forward[step], two.batch(step), strict=True):
            np.testing.assert_array_equal(a.response, b.response)
            np.testing.assert_array_equal(a.corrupted, b.corrupted)
            np.testing.assert_array_equal(a.prompt, b.prompt)
    other = Batches(_maker(train_config()), 120, 6).batch(0)
    assert any(a.response.tobytes() != b.response.tobytes() for a, b in zip(forward[0], other, strict=False))


def test_every_utterance_comes_once_an_epoch() -> None:
    """Without joining, a response is one utterance; three pools hold whole epochs and a part of one."""
    batches = Batches(_maker(train_config(join=None, text_dropout=0.0)), 100, 0)
    seen = Counter(tuple(s.text.tolist()) for step in range(POOL * 6) for s in batches.batch(step))
    total = batches.samples_per_pool * 6
    assert sum(seen.values()) == total
    assert max(seen.values()) - min(seen.values()) <= 6  # each of four words is a quarter of the corpus


def test_batches_keep_to_their_budget() -> None:
    for budget in (200, 800):
        batches = Batches(_maker(train_config()), budget, 0)
        area = [len(b) * max(map(batches.maker.layout.length, b)) for b in (batches.batch(k) for k in range(POOL * 4))]
        assert np.mean(area) == pytest.approx(budget, rel=0.1) and max(area) < 1.2 * budget


def _areas(lengths: list[int], edges: list[int]) -> list[int]:
    return [(b - a) * lengths[b - 1] for a, b in pairwise(edges)]


@pytest.mark.parametrize("rows", ["two lengths", "all lengths", "alike"])
def test_the_largest_batch_of_mixed_lengths_keeps_to_the_budget(rows: str) -> None:
    """One row in a hundred is 22 times as long: at equal sums the batch at the border held 230,000 positions."""
    rng, budget, count = np.random.default_rng(0), 20000, 32
    for _ in range(4):
        made = {
            "two lengths": rng.choice([100, 2250], p=[0.99, 0.01], size=8000),
            "all lengths": rng.lognormal(5.5, 0.6, size=8000).clip(40, 2250).astype(int),
            "alike": np.full(8000, 600),
        }[rows]
        enough = round(count * budget / (made.mean() * 1.05) / 4) * 4
        lengths = sorted(made[:enough].tolist())
        edges = cut(lengths, count, 4)
        assert len(edges) == count + 1 and edges[0] == 0 and edges[-1] == len(lengths)
        assert all(a < b and a % 4 == 0 for a, b in pairwise(edges))
        areas = _areas(lengths, edges)
        assert max(areas) < 1.15 * budget and sum(areas) < 1.1 * sum(lengths)  # hardly any padding


def test_no_other_cuts_have_a_smaller_largest_batch() -> None:
    rng = np.random.default_rng(0)
    for count, group in ((3, 1), (4, 1), (3, 2)) * 10:
        lengths = sorted(rng.integers(1, 30, size=group * int(rng.integers(count, 10))).tolist())
        inner = combinations(range(group, len(lengths), group), count - 1)
        least = min(max(_areas(lengths, [0, *edges, len(lengths)])) for edges in inner)
        assert max(_areas(lengths, cut(lengths, count, group))) == least


def test_held_out_strings_are_never_made() -> None:
    maker = _maker(train_config(text_dropout=0.0), fraction=0.5)
    rng = np.random.default_rng(0)
    made = Counter()
    for index in range(300):
        made[tuple(maker.make(index % 24, 10**6, rng).text.tolist())] += 1
    words = [" ".join(f"w{t - 4}" for t in text if t != SPACE) for text in made]
    joined = [text for text in words if " " in text]
    assert len(joined) > 20
    assert not any(held_out(text, 0, 0.5) for text in joined)


def test_joined_clips_share_a_speaker_and_their_text_is_joined_with_a_gap() -> None:
    maker = _maker(train_config(text_dropout=0.0, join=JoinConfig(min_clips=2, max_clips=2, gap_seconds=(0.06, 0.06))))
    sample = maker.make(0, 0, np.random.default_rng(1))
    assert sample.text[1] == SPACE
    lengths = [4 + int(t) - 4 for t in sample.text[[0, 2]]]
    assert sample.response.shape[1] == sum(lengths) + 3  # 0.06 s at 50 frames a second


@pytest.mark.parametrize("join", [None, JoinConfig(min_clips=2, max_clips=3, gap_seconds=(0.0, 0.0))])
def test_a_prompt_is_never_of_the_response_and_empty_where_nothing_else_is_left(join: JoinConfig | None) -> None:
    few, train = corpus(4, speakers=3), train_config(text_dropout=0.0, prompt_dropout=0.0, join=join)
    maker, rng = SampleMaker(few, train, model_config(), CODES, SPACE, 0, 0.0, augment=True), np.random.default_rng(0)
    for i in [0, 3] * 40 + [1, 2] * 3:
        made = maker.make(i, 10**6, rng)
        assert {int(t) for t in made.text if t != SPACE} == {4 + i}  # the other is left for the prompt
        assert (made.prompt.shape[1] == 0) == (i in (1, 2))
        if i in (0, 3):
            other = few.utterances[3 - i].codes
            starts = range(other.shape[1] - made.prompt.shape[1] + 1)
            assert any((other[:, at : at + made.prompt.shape[1]] == made.prompt).all() for at in starts)


def test_a_prompt_of_short_words_is_as_long_as_it_should_be_or_has_each_once() -> None:
    words, rng = corpus(72, speakers=3), np.random.default_rng(0)
    long = train_config(prompt_dropout=0.0, prompt_seconds=(1.2, 1.2), join=None)  # 60 frames of words of 4 to 7
    maker = SampleMaker(words, long, model_config(), CODES, SPACE, 0, 0.0, augment=True)
    assert {maker.make(i, 0, rng).prompt.shape[1] for i in range(72)} == {60}
    endless = long.model_copy(update={"prompt_seconds": (9.0, 9.0)})
    maker = SampleMaker(words, endless, model_config(), CODES, SPACE, 0, 0.0, augment=True)
    for i in range(72):
        others = [u.frames for u in words.utterances if u.index != i and u.speaker == words.utterances[i].speaker]
        assert maker.make(i, 0, rng).prompt.shape[1] == sum(others)


def test_frames_of_joined_clips_know_their_phones() -> None:
    """Words of one phone each: a clip's frames are its phone's, a pause's the gap's."""
    maker = _maker(train_config(text_dropout=0.0, join=JoinConfig(min_clips=3, max_clips=3, gap_seconds=(0.06, 0.06))))
    made = maker.make(0, 10**6, np.random.default_rng(1))
    lengths = [3 if t == SPACE else int(t) for t in made.text]  # a word's phone is also its number of frames
    expected = np.repeat(np.arange(len(lengths)), lengths)
    np.testing.assert_array_equal(made.spoken, [expected, expected])


@pytest.mark.parametrize(("phones", "frames"), [(1, 7), (3, 20), (60, 300), (9, 2)])
def test_the_band_of_an_even_pace(phones: int, frames: int) -> None:
    first, last = diagonal(phones, frames)
    pace = (np.arange(frames) + 0.5) / frames * phones
    assert (first <= pace).all() and (pace <= last + 1).all()
    assert first.min() >= 0 and last.max() == phones - 1
    assert (np.diff(first) >= 0).all() and (np.diff(last) >= 0).all()
    assert (last - first).max() <= max(2, 0.3 * phones + 1)


def test_curriculum_starts_with_the_shortest() -> None:
    join = JoinConfig(min_clips=2, max_clips=5, curriculum_steps=100)
    maker = _maker(train_config(join=join, text_dropout=0.0), fraction=0.0)
    rng = np.random.default_rng(0)
    clips = [[int((maker.make(i, step, rng).text == SPACE).sum()) + 1 for i in range(24)] for step in (0, 1000)]
    assert set(clips[0]) == {1, 2}
    assert set(clips[1]) == {2, 3, 4, 5}


def test_dropping_and_corrupting_happen_at_their_rates_and_only_in_training() -> None:
    train = train_config(text_dropout=0.3, prompt_dropout=0.2, input_mask=0.25, input_random=0.0)
    rng = np.random.default_rng(0)
    samples = [_maker(train).make(i % 24, 0, rng) for i in range(300)]
    assert np.mean([len(s.text) == 0 for s in samples]) == pytest.approx(0.3, abs=0.08)
    assert np.mean([s.prompt.shape[1] == 0 for s in samples]) == pytest.approx(0.2, abs=0.08)
    masked = np.concatenate([s.corrupted[0] == CODES for s in samples])
    assert masked.mean() == pytest.approx(0.25, abs=0.04)
    assert all(
        (s.corrupted[:, s.corrupted[0] != CODES] == s.response[:, s.corrupted[0] != CODES]).all() for s in samples
    )
    plain = _maker(train, augment=False).make(0, 0, rng)
    assert plain.corrupted is None
    assert len(plain.text) > 0


def test_languages_are_told_joined_apart_and_dropped_at_their_rate() -> None:
    bilingual, config = corpus(48, languages=("en-us", "de")), model_config(languages=("de", "en-us"))
    train = train_config(language_dropout=0.25, text_dropout=0.2, join=JoinConfig(min_clips=3, max_clips=3))
    maker = SampleMaker(bilingual, train, config, CODES, SPACE, 0, 0.0, augment=True)
    rng, dropped = np.random.default_rng(0), 0
    for i in range(400):
        first = bilingual.utterances[i % 48]
        assert {clip.language for clip in maker._clips(i % 48, 0, rng)[0]} == {first.language}
        made = maker.make(i % 48, 0, rng)
        assert made.language in (0, config.language_id(first.language))
        assert len(made.text) or made.language == 0  # the null row of guidance knows neither
        dropped += made.language == 0
    assert dropped / 400 == pytest.approx(0.2 + 0.8 * 0.25, abs=0.07)
    plain = SampleMaker(bilingual, train, config, CODES, SPACE, 0, 0.0, augment=False)
    assert {plain.make(i % 48, 0, rng).language for i in range(40)} == {1, 2}
    silent = SampleMaker(bilingual, train, model_config(), CODES, SPACE, 0, 0.0, augment=True)
    assert {silent.make(i % 48, 0, rng).language for i in range(40)} == {0}
    stranger = SampleMaker(bilingual, train, model_config(languages=("fr-fr",)), CODES, SPACE, 0, 0.0, augment=True)
    with pytest.raises(ValueError, match="language 'en-us' is none of model.languages: it knows fr-fr"):
        stranger.make(0, 0, rng)


@pytest.mark.parametrize("form", ["nudge", "mask"])
def test_token_dropout_touches_its_share_of_the_previous_level_only(form: str) -> None:
    settings = TokenDropoutConfig(rate=0.3, form=form)
    codes = np.tile(np.arange(CODES + 1), 400)  # the last is the mask
    seen = dropped(codes, CODES, settings, np.random.default_rng(0))
    changed, real = seen != codes, codes < CODES
    assert changed[real].mean() == pytest.approx(0.3, abs=0.03) and not changed[~real].any()
    if form == "mask":
        assert (seen[changed] == CODES).all()
    else:
        assert (np.abs(seen - codes)[changed] == 1).all() and seen[real].min() == 0 and seen[real].max() == CODES - 1
        assert {int(s) for s in (seen - codes)[changed & (codes == 5)]} == {-1, 1}

    train = train_config(input_mask=0.0, input_random=0.0, token_dropout=settings)
    maker, rng = _maker(train, kind="ar+nar"), np.random.default_rng(0)
    made = [maker.make(i % 24, 0, rng) for i in range(300)]
    for sample in made:
        touched = {int(level) for level in np.flatnonzero((sample.corrupted != sample.response).any(1))}
        assert touched <= {sample.level - 1}
    assert any((sample.corrupted != sample.response).any() for sample in made)
    with pytest.raises(ConfigError, match="token_dropout is for level passes, and kind v2-ar has none"):
        parse_params({"model": {"kind": "v2-ar"}, "train": {"token_dropout": {"rate": 0.1}}})


def test_levels_are_drawn_by_their_weights() -> None:
    config = model_config("ar+nar", level_weights=(1.0, 3.0, 0.000001))
    maker = SampleMaker(corpus(), train_config(), config, CODES, SPACE, 0, 0.0, augment=True)
    rng = np.random.default_rng(0)
    drawn = Counter(maker.make(i % 24, 0, rng).level for i in range(400))
    assert drawn[1] / drawn[0] == pytest.approx(3.0, rel=0.3)
    with pytest.raises(ValueError, match="2 weights for a codec of 3 levels"):
        SampleMaker(
            corpus(),
            train_config(),
            model_config("ar+nar", level_weights=(1.0, 1.0)),
            CODES,
            SPACE,
            0,
            0.0,
            augment=True,
        )


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_given_rows_of_its_modes(kind: str) -> None:
    maker, rng = _maker(train_config(), kind=kind), np.random.default_rng(0)
    made = [s for s in (maker.make(i % 24, 0, rng) for i in range(120)) if s.task == "tts"]
    assert {s.mode for s in made} == set(KINDS[kind].modes)
    for s in made:
        assert (s.level > 0) == (s.mode == "level")
        if s.mode == "mask":
            hidden = s.corrupted == CODES
            assert hidden.any() and (s.corrupted[~hidden] == s.response[~hidden]).all()
            assert KINDS[kind].frames or not hidden[1:].any()


def test_masked_rows_hide_their_share() -> None:
    for share, mean in ((0.8, 0.8), (None, 2 / np.pi)):
        train = train_config(mask_share=share, join=JoinConfig(min_clips=6, max_clips=6))
        maker, rng = _maker(train, 0.0, kind="nar-len"), np.random.default_rng(0)
        made = [s for s in (maker.make(i % 24, 0, rng) for i in range(900)) if s.mode == "mask"]
        assert np.mean([(s.corrupted[0] == CODES).mean() for s in made]) == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize("kind", ["v2-ar", "v2-nar"])
def test_a_loss_on_one_level_draws_it_by_its_weights(kind: str) -> None:
    config = model_config(kind, level_weights=(1.0, 3.0, 0.000001))
    maker = SampleMaker(corpus(), train_config(level_loss="one"), config, CODES, SPACE, 0, 0.0, augment=True)
    rng = np.random.default_rng(0)
    made = [maker.make(i % 24, 0, rng) for i in range(400)]
    drawn = Counter(sample.asked for sample in made)
    assert drawn[1] / drawn[0] == pytest.approx(3.0, rel=0.3)
    if kind == "v2-nar":  # the level that is learned is the one that is partly seen
        assert all((s.corrupted[s.asked + 1 :] == CODES).all() for s in made)
    for params, reason in (
        ({"model": {"kind": "ar-depth"}, "train": {"level_loss": "one"}}, "level_loss one is for v2-ar and v2-nar"),
        ({"model": {"kind": "v2-ar", "level_weights": [1]}}, "no level is drawn"),
    ):
        with pytest.raises(ConfigError, match=reason):
            parse_params(params)


@pytest.mark.parametrize("named", [True, False])
def test_v2_hides_a_level_and_all_above_it_or_all_alike(named: bool) -> None:
    """As ``train.mask_levels`` says, or as the codec's levels have an order or not."""
    rng = np.random.default_rng(0)
    if named:
        one, alike = (_maker(train_config(mask_levels=m), kind="v2-nar") for m in ("one", "all"))
    else:
        one, alike = (_maker(train_config(), kind="v2-nar", residual=r) for r in (True, False))
    shares = []
    for i in range(80):
        hidden = (one.make(i % 24, 0, rng).corrupted == CODES).mean(1)
        first = int((hidden > 0).argmax())
        assert (hidden[:first] == 0).all() and (hidden[first + 1 :] == 1).all()
        shares.append((alike.make(i % 24, 0, rng).corrupted == CODES).mean(1))
    assert np.min(shares) > 0
    assert np.ptp(np.mean(shares, axis=0)) < 0.08  # no level is asked more than another


def test_a_codec_without_order_refuses_masks_by_level_where_a_row_has_several() -> None:
    train = train_config(mask_levels="one")
    with pytest.raises(ValueError, match=r"mask_levels one goes by the order"):
        _maker(train, kind="v2-nar", residual=False)
    assert _maker(train, kind="nar-len", residual=False).level_p.tolist() == [1 / 3] * 3


def test_tasks_are_mixed_by_their_weights_and_hold_what_they_say() -> None:
    config = model_config("ar+nar", tasks=("tts", "stt", "phn", "un-phn", "len", "cse", "vc", "tts-c"))
    train = train_config(text_dropout=0.0, task_weights={"stt": 3.0})
    maker = SampleMaker(corpus(), train, config, CODES, SPACE, 0, 0.0, augment=True)
    rng = np.random.default_rng(0)
    made = [maker.make(i % 24, 0, rng) for i in range(600)]
    count = Counter(s.task for s in made)
    assert set(count) == set(config.tasks)
    assert count["stt"] / count["tts"] == pytest.approx(3.0, rel=0.35)
    for s in made:
        if s.task == "stt":
            np.testing.assert_array_equal(s.symbols, s.text)
            assert s.more["source"].shape[1] > 0 and s.prompt.shape[1] == 0
        elif s.task == "phn":
            assert bytes(s.chars.tolist()).decode().startswith("w") and len(s.symbols) > 0
        elif s.task == "cse":
            assert s.response.shape[1] > 0
        elif s.task == "vc":
            assert len(s.text) == 0
    needed = SampleMaker(corpus(), train_config(), model_config("nar-len"), CODES, SPACE, 0, 0.0, augment=True)
    assert np.mean([needed.make(i % 24, 0, rng).task == "len" for i in range(600)]) == pytest.approx(0.13, abs=0.05)
    with pytest.raises(ValueError, match="task_weights names ns"):
        SampleMaker(corpus(), train_config(task_weights={"ns": 1.0}), config, CODES, SPACE, 0, 0.0, augment=True)
    noisy = model_config("ar+nar", tasks=("tts", "ns"))
    with pytest.raises(ValueError, match="nothing to learn ns from: set encode.mixtures.noise"):
        SampleMaker(corpus(), train_config(), noisy, CODES, SPACE, 0, 0.0, augment=True)


def test_named_distributions_of_levels() -> None:
    assert level_shares(None, 4) == level_shares("equal", 4) == [1.0] * 4
    assert level_shares("decreasing", 4) == [4.0, 3.0, 2.0, 1.0]
    normal = level_shares("normal", 5)
    assert normal == normal[::-1] and normal[2] == max(normal) > normal[1] > normal[0]
    assert level_shares((1.0, 5.0), 2) == [1.0, 5.0]
    assert level_shares((1.0, 5.0), 2, residual=False) == [1.0, 5.0]
    assert level_shares(None, 2, residual=False) == [1.0, 1.0]
    for named in ("decreasing", "normal"):
        with pytest.raises(ValueError, match=f"{named} weights go by the order of levels"):
            level_shares(named, 4, residual=False)
