"""Tasks about mixtures in the loader: aligned with the utterance, joined with it, and trained with all others."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import ALONE, BOTH, CODES, LEVELS, NOISY, corpus, model_config, of_task, train_config
from tests.training.test_run import CODEC, make_project, run
from vall_e.config import Params, TrainConfig
from vall_e.corpus.schema import CODES as SHARD
from vall_e.corpus.schema import MIXTURES, read_rows, write_table
from vall_e.data.corpus import CodesCorpus, Mixture
from vall_e.data.mixtures import join_mixtures
from vall_e.data.samples import SampleMaker
from vall_e.models.packing import Sample
from vall_e.preparation import EncodeConfig, MixturesConfig
from vall_e.regimen import JoinConfig
from vall_e.tasks import NAMES
from vall_e.text.tokenizer import Tokenizer

SPACE = 3


def mixed(kinds: tuple[str, ...] = ("noise", "overlap"), every: int = 1) -> CodesCorpus:
    """The tiny corpus with mixtures whose codes say what they are."""
    return corpus(mixtures=kinds, mixed=every)


def made(task: str, count: int = 60, kind: str = "ar+nar", augment: bool = False, **changes: object) -> list[Sample]:
    """Samples of one task."""
    train = train_config(**changes)
    maker = SampleMaker(mixed(), train, model_config(kind, tasks=(task,)), CODES, SPACE, 0, 0.0, augment=augment)
    rng = np.random.default_rng(0)
    samples = [maker.make(i % 24, 10**6, rng) for i in range(count)]
    return [s for s in samples if s.task == task]


def test_joined_mixtures_keep_to_the_frames_and_the_noise_goes_on_in_the_pauses() -> None:
    response = np.arange(20).reshape(1, 20)
    clips = [Mixture(np.full((1, n), 50 + n), 60 + n + np.arange(n)[None]) for n in (3, 8, 4)]
    both, noise = join_mixtures(response, clips, [5, 0])
    assert noise[0].tolist() == [63, 64, 65, 63, 64, 65, 63, 64, *range(68, 76), *range(64, 68)]
    assert both[0].tolist() == [53] * 3 + [63, 64, 65, 63, 64] + [58] * 8 + [54] * 4
    both, noise = join_mixtures(response, [replace(clip, noise=None) for clip in clips], [5, 0])
    assert both[0].tolist() == [53] * 3 + [3, 4, 5, 6, 7] + [58] * 8 + [54] * 4 and noise is None


JOINS = [None, JoinConfig(min_clips=2, max_clips=3, gap_seconds=(0.04, 0.1))]


@pytest.mark.parametrize("join", JOINS)
def test_ns_cleans_and_sr_keeps_the_noise_frame_by_frame(join: JoinConfig | None) -> None:
    for s in made("ns", join=join):
        source = s.more["source"]
        assert source.shape == s.response.shape and (s.response < CODES).all() and s.prompt.shape[1] == 0
        spoken = source < ALONE
        np.testing.assert_array_equal(source[spoken], s.response[spoken] + NOISY)
        assert spoken.all() == (join is None)
    for s in made("sr", join=join):
        source = s.more["source"]
        assert source.shape == s.response.shape and (s.response >= ALONE).all() and s.spoken is None
        spoken = source < ALONE
        np.testing.assert_array_equal(source[spoken] - NOISY, s.response[spoken] - ALONE)
        np.testing.assert_array_equal(source[~spoken], s.response[~spoken])  # noise alone in the pauses


@pytest.mark.parametrize("join", JOINS)
def test_tse_has_two_voices_and_always_a_prompt(join: JoinConfig | None) -> None:
    samples = made("tse", augment=True, prompt_dropout=1.0, text_dropout=0.0, join=join)
    for s in samples:
        assert s.prompt.shape[1] > 0 and (s.prompt < CODES).all()
        two = s.more["source"] >= BOTH
        np.testing.assert_array_equal(s.more["source"][two] - BOTH, s.response[two])
        np.testing.assert_array_equal(s.more["source"][~two], s.response[~two])  # pauses


def test_nse_is_in_the_noise_before_after_and_in_the_answer() -> None:
    for s in made("nse", join=None):
        whole = np.concatenate((s.more["before"], s.response, s.more["after"]), axis=1)
        assert ((whole >= NOISY) & (whole < ALONE)).all() and s.prompt.shape[1] == 0
        assert ((s.more["middle"] >= NOISY) & (s.more["middle"] < ALONE)).all() and s.more["middle"].shape[1] > 0
        assert len(s.text) == 1
    for s in made("cse", join=None):
        assert (np.concatenate((*s.more.values(), s.response), axis=1) < CODES).all()


@pytest.mark.parametrize("task", ["ns", "sr", "tse"])
def test_the_text_is_sometimes_left_out_where_it_is_optional(task: str) -> None:
    samples = made(task, 200)
    assert np.mean([len(s.text) == 0 for s in samples]) == pytest.approx(0.5, abs=0.12)
    assert all(s.spoken is None for s in samples if not len(s.text))
    assert task == "sr" or all(s.spoken is not None for s in samples if len(s.text) and s.mode == "ar")


@pytest.mark.parametrize("kind", ["nar-len", "v2-nar", "ar-depth"])
@pytest.mark.parametrize("task", ["sr", "nse"])
def test_what_is_masked_or_random_stays_so_when_the_answer_is_another(task: str, kind: str) -> None:
    low = {"sr": ALONE, "nse": NOISY}[task]
    samples = made(task, 60, kind, augment=True, join=None, input_random=0.2, input_mask=0.3)
    hidden = 0
    for s in samples:
        seen = s.corrupted
        assert seen.shape == s.response.shape
        kept = seen >= low
        np.testing.assert_array_equal(seen[kept], s.response[kept])
        hidden += int((seen == CODES).sum())
        assert ((seen <= CODES) | kept).all()  # the others are random codes or masks
    assert hidden > 20


def test_an_utterance_without_a_partner_is_given_another_task() -> None:
    part = mixed(every=2)
    assert list(part.mixtures["overlap"]) == list(range(1, 24, 2)) and len(part.mixtures["noise"]) == 24
    model = model_config(tasks=("tts", "tse"))
    maker = SampleMaker(part, train_config(join=None), model, CODES, SPACE, 0, 0.0, augment=True)
    rng = np.random.default_rng(0)
    tasks = [Counter(maker.make(i, 0, rng).task for _ in range(40)) for i in (2, 3)]
    assert set(tasks[0]) == {"tts"} and set(tasks[1]) == {"tts", "tse"}
    with pytest.raises(ValueError, match="some utterances have no mixture to learn tse from, .*: add a task"):
        SampleMaker(part, train_config(), model_config(tasks=("tse",)), CODES, SPACE, 0, 0.0, augment=True)


def test_a_speaker_of_one_utterance_is_given_no_task_that_needs_a_prompt() -> None:
    few = corpus(4, speakers=3, mixtures=("overlap",))  # u0 and u3 are one speaker's, u1 and u2 are alone

    def maker(spoken: CodesCorpus, *tasks: str) -> SampleMaker:
        return SampleMaker(spoken, train_config(), model_config(tasks=tasks), CODES, SPACE, 0, 0.0, augment=True)

    several, rng = maker(few, "tts", "tse", "vc"), np.random.default_rng(0)
    tasks = [{several.make(i, 10**6, rng).task for _ in range(40)} for i in range(4)]
    assert tasks == [{"tts", "tse", "vc"}, {"tts"}, {"tts"}, {"tts", "tse", "vc"}]
    with pytest.raises(ValueError, match="or no other utterance of their speaker for its prompt: add a task"):
        maker(few, "tse")
    with pytest.raises(ValueError, match="nothing to learn vc from: give speakers a second utterance"):
        maker(corpus(3, speakers=3), "tts", "vc")


def test_a_corpus_without_mixtures_is_refused_in_training_with_the_remedy() -> None:
    def maker(kinds: tuple[str, ...], *tasks: str, augment: bool = True) -> SampleMaker:
        model = model_config(tasks=tasks)
        return SampleMaker(mixed(kinds), train_config(), model, CODES, SPACE, 0, 0.0, augment=augment)

    with pytest.raises(ValueError, match=r"to learn ns, nse from: set encode.mixtures.noise .* again"):
        maker(("overlap",), "tts", "ns", "nse")
    with pytest.raises(ValueError, match=r"to learn tse from: set encode.mixtures.overlap_db \(two speakers"):
        maker(("noise",), "tse", "ns")
    assert maker(("noise",), "tse", "ns", augment=False).tasks == ["ns"]
    with pytest.raises(ValueError, match="to learn tse from"):
        maker(("noise",), "tse", augment=False)


def test_every_maker_answers_with_its_own_codes() -> None:
    """``of_task`` draws all parts anew, so parts that were swapped differ."""
    for seed in range(5):
        ns, sr, tse = (of_task(task, seed) for task in ("ns", "sr", "tse"))
        np.testing.assert_array_equal(ns.response, tse.response)
        np.testing.assert_array_equal(ns.more["source"], sr.more["source"])
        assert (sr.response != ns.response).any() and (sr.response != sr.more["source"]).any()
        assert tse.prompt.shape == (LEVELS, 9) and ns.prompt.shape == sr.prompt.shape == (LEVELS, 0)


def add_mixtures(root: Path) -> None:
    """What the encode stage writes with ``encode.mixtures``, of random codes."""
    rng = np.random.default_rng(0)
    rows = []
    for row in read_rows(root / "data/encode/shard-00000.parquet", SHARD):
        size = row["levels"] * row["frames"]
        facts = {
            "id": row["id"],
            "other": "x",
            "ratio_db": 0.0,
            "room": None,
            "frames": row["frames"],
            "levels": LEVELS,
        }
        codes, noise, two = rng.integers(CODES, size=(3, size), dtype=np.int16)
        rows += [
            facts | {"kind": "noise", "codes": codes, "noise": noise},
            facts | {"kind": "overlap", "codes": two, "noise": None},
        ]
    write_table(rows, MIXTURES, root / "data/encode/mixtures-00000.parquet")


def settings(kind: str) -> Params:
    train = TrainConfig(
        max_steps=6, batch_frames=300, checkpoint_every=3, prompt_seconds=(0.1, 0.2), threads=1, warmup_steps=2,
        precision="32-true", join=JoinConfig(max_clips=3),
    )  # fmt: skip
    model = model_config(kind, tasks=NAMES)
    encode = EncodeConfig(trim_db=None, mixtures=MixturesConfig(noise="noise"))
    return Params(codec={"mel": CODEC.model_dump()}, model=model.model_dump(), encode=encode, train=train)


@pytest.mark.parametrize("kind", ["ar+nar", "v2-nar"])
def test_a_model_trains_on_all_twelve_tasks(tmp_path: Path, kind: str) -> None:
    assert len(NAMES) == 12
    make_project(tmp_path)
    with pytest.raises(ValueError, match="nothing to learn ns, sr, nse from|nothing to learn ns, sr, tse"):
        run(tmp_path, settings(kind))
    add_mixtures(tmp_path)
    figures = run(tmp_path, settings(kind))
    assert figures["steps"] == 6 and all(np.isfinite(v) for name, v in figures.items() if "loss" in name)
    config = json.loads((tmp_path / "models/voice/config.json").read_text())
    assert set(NAMES) <= set(config["model"]["tasks"]) and config["encode"]["mixtures"] is None


def test_mixtures_are_read_when_asked_for_and_only_of_these_utterances(tmp_path: Path) -> None:
    make_project(tmp_path)
    add_mixtures(tmp_path)
    folder, work = tmp_path / "data/encode", tmp_path / ".work"
    tokenizer = Tokenizer.load(tmp_path / "data/phonemize/tokenizer.json")
    assert CodesCorpus.load(folder, tokenizer, "train", work).mixtures == {}
    read = CodesCorpus.load(folder, tokenizer, "val", work, mixtures=("noise", "overlap"))
    assert len(read.utterances) == 4
    assert set(read.mixtures["noise"]) == set(read.mixtures["overlap"]) == set(range(4))
    rows = {(row["id"], row["kind"]): row for row in read_rows(folder / "mixtures-00000.parquet", MIXTURES)}
    for u in read.utterances:
        noisy, two = read.mixtures["noise"][u.index], read.mixtures["overlap"][u.index]
        assert noisy.codes.shape == noisy.noise.shape == two.codes.shape == u.codes.shape and two.noise is None
        assert noisy.codes.reshape(-1).tolist() == rows[u.id, "noise"]["codes"]
        assert noisy.noise.reshape(-1).tolist() == rows[u.id, "noise"]["noise"]
        assert two.codes.reshape(-1).tolist() == rows[u.id, "overlap"]["codes"]
    row = next(iter(rows.values()))
    short = row | {"frames": 1, "codes": row["codes"][:LEVELS], "noise": row["noise"][:LEVELS]}
    write_table([short], MIXTURES, folder / "mixtures-00000.parquet")
    with pytest.raises(ValueError, match=f"mixture of {row['id']} is of other codes: run the encode stage"):
        CodesCorpus.load(folder, tokenizer, "train", work, mixtures=("noise",))
    write_table([row], MIXTURES, folder / "mixtures-00000.parquet")
    with pytest.raises(ValueError, match="some utterances have no mixture with noise"):
        CodesCorpus.load(folder, tokenizer, "train", work, mixtures=("noise",))


@pytest.mark.parametrize("kind", ["ar+nar", "ar-depth", "v2-nar"])
def test_the_loader_makes_all_twelve_tasks(kind: str) -> None:
    model = model_config(kind, tasks=NAMES)
    maker = SampleMaker(mixed(), train_config(), model, CODES, SPACE, 0, 0.3, augment=True)
    rng = np.random.default_rng(0)
    count = Counter(maker.make(i % 24, 0, rng).task for i in range(400))
    assert set(count) == set(NAMES) and min(count.values()) > 15
