"""Mixtures in the encode stage: what a row holds, what is drawn, what is refused, and the same bytes however it ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from tests.codecs import small
from tests.corpus.test_encode import Corpus, contents, tone
from vall_e.config import ConfigError, parse_params
from vall_e.corpus import encode as module
from vall_e.corpus.clips import prepare
from vall_e.corpus.encode import load_codes
from vall_e.corpus.mixing import active_rms
from vall_e.corpus.mixtures import Mixer, Partners, Sources, survey
from vall_e.corpus.schema import MIXTURES, REJECTS, read_rows
from vall_e.preparation import EncodeConfig, ExecutorConfig, MixturesConfig


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    """Two speakers; u04 and u05 are for validation, u07 for testing."""
    made = Corpus(tmp_path)
    for index in (4, 5):
        made.rows[index]["split"] = "val"
    rng = np.random.default_rng(0)
    for name, seconds, rate in (("noise/hum.wav", 0.2, 8000), ("noise/far/street.flac", 1.5, 22_050)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(int(seconds * rate)), rate)
    (tmp_path / "rirs").mkdir()
    soundfile.write(tmp_path / "rirs/hall.wav", 0.5 * rng.standard_normal(800) * np.exp(-np.arange(800) / 200), 16_000)
    (tmp_path / "noise/README.md").write_text("no sound")
    return made


def settings(corpus: Corpus, **changes: object) -> dict[str, object]:
    return {"noise": str(corpus.folder / "noise"), "rirs": str(corpus.folder / "rirs"), "rir_share": 0.5} | changes


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("mixtures-*.parquet")) for row in read_rows(path, MIXTURES)]


def test_every_training_and_validation_clip_has_its_mixtures_with_its_own_frames(corpus):
    out, figures = corpus.run(speeds=[0.9], mixtures=settings(corpus, snr_db=[0, 3], overlap_db=[-1, 1]))
    clips = {row["id"]: row for row in load_codes(out).to_pylist()}
    rows = rows_of(out)
    seen = [name for name, row in clips.items() if row["split"] != "test"]
    assert len(seen) == 16 and (figures["noisy"], figures["overlapped"]) == (16, 16)
    assert sorted((row["id"], row["kind"]) for row in rows) == sorted(
        (n, k) for n in seen for k in ("noise", "overlap")
    )
    for row in rows:
        clip = clips[row["id"]]
        assert (row["frames"], row["levels"]) == (clip["frames"], clip["levels"])
        assert len(row["codes"]) == row["frames"] * row["levels"]
        if row["kind"] == "noise":
            assert row["other"] in ("hum.wav", "far/street.flac") and 0 <= row["ratio_db"] <= 3
            assert len(row["noise"]) == len(row["codes"])
        else:
            other = clips[row["other"]]
            assert row["noise"] is None and -1 <= row["ratio_db"] <= 1
            assert other["split"] == clip["split"] and other["speaker"] != clip["speaker"].split("@")[0]
    assert {row["room"] for row in rows} == {None, "hall.wav"}
    assert {row["other"] for row in rows if row["kind"] == "noise"} == {"hum.wav", "far/street.flac"}
    assert len({row["ratio_db"] for row in rows}) == len(rows)
    assert np.mean([row["codes"] != clips[row["id"]]["codes"] for row in rows]) > 0.5
    assert np.mean([row["noise"] != row["codes"] for row in rows if row["noise"]]) > 0.5


def test_a_mixture_is_the_clip_and_the_noise_that_stands_beside_it(corpus):
    codec, encoding = small.mel(), EncodeConfig()
    config = MixturesConfig(noise=str(corpus.folder / "noise"), snr_db=(6.0, 6.0), overlap_db=(-2.0, -2.0))
    sources, rejects = survey(config)
    assert list(sources.noises) == ["far/street.flac", "hum.wav"] and not rejects
    (clip,), _ = prepare(corpus.rows[3] | {"phones": []}, encoding, codec)
    mixer = Mixer(config, encoding, sources, codec.sample_rate)
    noisy, two = mixer.mixtures(clip, [("gone", "nowhere.wav", 0.0, 1.0), ("u02", corpus.rows[2]["path"], 0.0, 1.0)])
    np.testing.assert_allclose(noisy.wav - noisy.noise, clip.wav, atol=1e-6)
    ratio = active_rms(clip.wav, 16_000) / active_rms(noisy.noise, 16_000)
    assert 20 * np.log10(ratio) == pytest.approx(6.0, abs=1e-3)
    assert (two.other, two.noise) == ("u02", None)
    ratio = active_rms(clip.wav, 16_000) / active_rms(two.wav - clip.wav, 16_000)
    assert 20 * np.log10(ratio) == pytest.approx(-2.0, abs=1e-3)
    row, _ = module.encode_mixtures(codec, [noisy, two], 60.0)
    for wav, codes in ((noisy.wav, row["codes"]), (noisy.noise, row["noise"])):
        np.testing.assert_array_equal(codes, codec.encode(torch.from_numpy(wav)[None, None])[0].reshape(-1))
    room = Mixer(config.model_copy(update={"rir_share": 1.0}), encoding, Sources(sources.noises, survey(
        config.model_copy(update={"rirs": str(corpus.folder / "rirs")}))[0].rooms), codec.sample_rate)  # fmt: skip
    wet = next(room.mixtures(clip, []))
    assert wet.room == "hall.wav" and np.abs(wet.wav - wet.noise - clip.wav).max() > 0.01


def test_shards_workers_and_batches_make_no_difference(corpus):
    mixed = settings(corpus)
    expected = rows_of(corpus.run("one", mixtures=mixed, shard_size=100)[0])
    assert (
        rows_of(corpus.run("two", ExecutorConfig(workers=2), mixtures=mixed, shard_size=3, batch_seconds=1.0)[0])
        == expected
    )
    assert rows_of(corpus.run("other", mixtures=mixed | {"seed": 1})[0]) != expected


def test_without_mixtures_the_same_bytes_and_no_other_file(corpus):
    plain, figures = corpus.run("plain")
    mixed = contents(corpus.run("mixed", mixtures=settings(corpus))[0])
    assert not list(plain.glob("mixtures-*")) and "noisy" not in figures
    assert contents(plain) == {name: data for name, data in mixed.items() if not name.startswith("mixtures-")}
    assert sum(name.startswith("mixtures-") for name in mixed) == 3


def test_a_half_finished_run_is_completed_to_the_same_bytes(corpus, monkeypatch):
    mixed = settings(corpus)
    expected = contents(corpus.run("expected", mixtures=mixed)[0])

    def stopped(row, *rest):
        if row["id"] == "u06":
            raise KeyboardInterrupt
        return prepare(row, *rest)

    monkeypatch.setattr(module, "prepare", stopped)
    with pytest.raises(KeyboardInterrupt):
        corpus.run("out", mixtures=mixed)
    left = {path.name for path in (corpus.folder / ".work").rglob("*.parquet")}
    assert left == {"shard-00000.parquet", "mixtures-00000.parquet", "rejects-00000.parquet"}

    def once(row, *rest):
        assert row["id"] >= "u04", "a finished shard was done again"
        return prepare(row, *rest)

    monkeypatch.setattr(module, "prepare", once)
    assert contents(corpus.run("out", mixtures=mixed)[0]) == expected


def test_work_is_keyed_by_the_content_of_the_folders_not_by_their_readme(corpus):
    corpus.write()
    where = [corpus.folder / name for name in ("manifest.parquet", "phones.parquet", "codec")]

    def key(**changes):
        params = parse_params({"encode": {"mixtures": settings(corpus, **changes)}})
        return module._key(params, *where, survey(params.encode.mixtures)[0])

    keys = [key(), key(seed=1), key(snr_db=[0, 1]), key(rirs=None)]
    (corpus.folder / "noise/README.md").write_text("still no sound")
    assert key() == keys[0]
    soundfile.write(corpus.folder / "noise/hum.wav", tone(0.2, 8000), 8000)
    keys.append(key())
    soundfile.write(corpus.folder / "rirs/hall.wav", tone(0.1, 8000), 8000)
    assert len({*keys, key()}) == 6


def test_unusable_noise_is_rejected_with_its_rule_and_a_folder_without_any_is_refused(corpus):
    folder = corpus.folder / "noise"
    soundfile.write(folder / "silent.wav", np.zeros(8000), 8000)
    (folder / "broken.wav").write_text("no audio")
    out, figures = corpus.run(mixtures=settings(corpus))
    rejects = {row["id"]: row["rule"] for row in read_rows(out / "rejects.parquet", REJECTS)}
    assert rejects == {"noise/silent.wav": "silent", "noise/broken.wav": "unreadable"}
    assert figures["kept"] == 10 and figures["noisy"] == 9
    for name in ("hum.wav", "far/street.flac"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"encode.mixtures.noise .*can be used \(noise/broken.wav: unreadable"):
        corpus.run(mixtures=settings(corpus))
    (corpus.folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"encode.mixtures.rirs .*there is none"):
        survey(MixturesConfig(rirs=str(corpus.folder / "empty")))
    with pytest.raises(ConfigError, match="encode.mixtures.noise nowhere: no such folder"):
        corpus.run(mixtures={"noise": "nowhere"})


def test_an_utterance_whose_split_has_one_speaker_has_no_overlap(corpus):
    corpus.rows[5]["speaker"] = "s0"
    out, figures = corpus.run(mixtures=settings(corpus, noise=None))
    assert (figures["noisy"], figures["overlapped"]) == (0, 7)
    assert {"u04", "u05"}.isdisjoint(row["id"] for row in rows_of(out))


def test_partners_are_all_the_others_of_the_split_alike(corpus):
    part = {"start": 0.0, "end": 1.0, "split": "train"}
    rows = [part | {"id": f"u{i:03d}", "path": str(i), "speaker": f"s{i % 3}"} for i in range(30)]
    drawn = Partners(rows, 0).of(rows, EncodeConfig(speeds=tuple(1 + i / 100 for i in range(1, 40))))
    own = {name: rows[int(name[1:4])]["speaker"] for name in drawn}
    assert all(rows[int(path)]["speaker"] != own[name] for name, voices in drawn.items() for _, path, *_ in voices)
    assert {other for name, voices in drawn.items() if own[name] == "s1" for other, *_ in voices} == {
        row["id"] for row in rows if row["speaker"] != "s1"
    }
    assert Partners(rows[::-1], 0).of(rows, EncodeConfig())["u003"] == drawn["u003"]
    assert drawn["u003"] != drawn["u003@1.01"]


@pytest.mark.parametrize(
    ("mixtures", "reason"),
    [
        ({"overlap_db": None}, "neither noise nor overlap_db"),
        ({"snr_db": [5, 0]}, "snr_db is a range"),
        ({"overlap_db": [float("nan"), 0]}, r"overlap_db\.0: Input should be a finite number"),
        ({"noises": "x"}, "unknown key"),
    ],
)
def test_settings_that_mix_nothing_are_refused(mixtures, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_params({"encode": {"mixtures": mixtures}})


@pytest.mark.parametrize(
    ("task", "mixtures", "key"),
    [("ns", None, "noise"), ("nse", {}, "noise"), ("tse", {"noise": "x", "overlap_db": None}, "overlap_db")],
)
def test_a_task_without_its_mixtures_is_refused_before_anything_is_encoded(task, mixtures, key):
    with pytest.raises(ConfigError, match=f"{task} is learned from mixtures: set encode.mixtures.{key}"):
        parse_params({"encode": {"mixtures": mixtures}, "model": {"tasks": ["tts", task]}})


def test_the_tables_metadata_says_what_the_columns_are(corpus):
    out, _ = corpus.run(mixtures=settings(corpus))
    assert pq.read_schema(out / "mixtures-00000.parquet").field("ratio_db").metadata[b"about"].startswith(b"level of")
