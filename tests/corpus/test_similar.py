"""The similar stage: who is near whom, never itself, never across speakers or splits."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch

import stages.similar
from tests.codecs import small
from tests.corpus.test_encode import tone
from vall_e.config import Params
from vall_e.corpus import features
from vall_e.corpus.features import mfcc_statistics
from vall_e.corpus.schema import CODES, REJECTS, SIMILAR, UTTERANCES, read_rows, write_table
from vall_e.corpus.similar import similar
from vall_e.preparation import ExecutorConfig, SimilarConfig


def test_mfcc_statistics_do_not_hear_loudness_but_hear_the_sound():
    one, other = tone(0.5, 16_000, 200.0), tone(0.5, 16_000, 800.0, seed=1)
    base = mfcc_statistics(one)
    assert base.shape == (38,) and np.isfinite(mfcc_statistics(one[:10])).all()
    assert np.abs(mfcc_statistics(0.5 * one) - base).max() < 0.1 * np.abs(mfcc_statistics(other) - base).max()


def heard(hertz, seed):
    """Codes [2, 6] of a sound: which ones is the pitch's, their order is not."""
    rng = np.random.default_rng(seed)
    return (rng.permutation([0, 0, 1, 1, 2, 3] * 2) + 8 * (hertz > 500)).tolist()


class Corpus:
    """Speaker a: two low and two high voices' sounds in train, one in test; speaker b: one utterance; copies at 0.9."""

    def __init__(self, folder):
        self.folder = folder
        kinds = {"a0": 200, "a1": 900, "a2": 210, "a3": 950, "b0": 205}
        manifest, codes = [], []
        for index, (name, hertz) in enumerate([*kinds.items(), ("a9", 208), ("a8", 202)]):
            path = folder / f"{name}.wav"
            soundfile.write(path, tone(0.5, 16_000, hertz, index), 16_000)
            split = "test" if name in ("a8", "a9") else "train"
            manifest.append({
                "id": name, "recording": name, "path": str(path), "start": 0.0, "end": 0.5, "group": None,
                "speaker": name[0], "text": name, "origin": "given", "language": "en-us", "split": split,
                "seconds": 0.5, "sample_rate": 16_000, "channels": 1, "digest": "0",
            })  # fmt: skip
            for suffix in ("", "@0.9") if split == "train" and name != "a3" else ("",):
                codes.append({
                    "id": name + suffix, "speaker": name[0] + suffix, "language": "en-us", "split": split,
                    "text": name,
                    "phones": ["x"], "frames": 6, "levels": 2, "codes": heard(hertz, index), "seconds": 0.5,
                    "source": name,
                })  # fmt: skip
        write_table(manifest, UTTERANCES, folder / "manifest.parquet")
        write_table(codes, CODES, folder / "codes" / "shard-00000.parquet")

    def run(self, executor=None, **settings):
        tables = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
        manifest, codes = self.folder / "manifest.parquet", self.folder / "codes"
        where, work = executor or ExecutorConfig(), self.folder / ".work"
        figures = similar(SimilarConfig(**settings), manifest, codes, self.folder, where, work, False, tables)
        rows = read_rows(self.folder / "similar.parquet", SIMILAR)
        return figures, {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("similar"))


@pytest.mark.parametrize("feature", ["mfcc", "speaker", "codes"])
def test_neighbours_sound_alike_and_share_speaker_split_and_speed(corpus, feature):
    figures, rows = corpus.run(feature=feature, top_k=3)
    near = {name: row["neighbours"] for name, row in rows.items()}
    assert near["a0"][0] == "a2" and near["a2"][0] == "a0"
    if feature != "speaker":  # two high tones are no voices to a speaker encoder
        assert near["a1"][0] == "a3" and near["a3"][0] == "a1"
    assert {name: set(ids) for name, ids in near.items()} == {
        "a0": {"a1", "a2", "a3"}, "a1": {"a0", "a2", "a3"}, "a2": {"a0", "a1", "a3"}, "a3": {"a0", "a1", "a2"},
        "b0": set(), "b0@0.9": set(), "a8": {"a9"}, "a9": {"a8"},
        "a0@0.9": {"a1@0.9", "a2@0.9"}, "a1@0.9": {"a0@0.9", "a2@0.9"}, "a2@0.9": {"a0@0.9", "a1@0.9"},
    }  # fmt: skip
    assert figures["kept"] == 11 and figures["alone"] == 2 and 0.0 < figures["top1"] <= 1.0
    assert all(len(row["neighbours"]) == len(row["scores"]) for row in rows.values())


def test_the_same_bytes_twice_and_only_k_neighbours(corpus):
    _, rows = corpus.run(top_k=1)
    first = (corpus.folder / "similar.parquet").read_bytes()
    assert max(len(row["neighbours"]) for row in rows.values()) == 1
    corpus.run(top_k=1)
    assert (corpus.folder / "similar.parquet").read_bytes() == first


def test_codes_of_another_manifest_are_refused(corpus, tmp_path):
    write_table([], UTTERANCES, tmp_path / "manifest.parquet")
    with pytest.raises(ValueError, match=r"lacks a0.*run the encode stage again"):
        similar(SimilarConfig(), tmp_path / "manifest.parquet", corpus.folder / "codes", tmp_path, ExecutorConfig())


def test_codes_are_compared_whatever_the_windows_and_batches(corpus, monkeypatch):
    _, rows = corpus.run(feature="codes", top_k=3)
    monkeypatch.setattr("vall_e.corpus.features._WINDOW", 2)
    monkeypatch.setattr("vall_e.corpus.features._FRAMES", 6)
    _, again = corpus.run(feature="codes", top_k=3)
    for name, row in rows.items():
        assert row["neighbours"] == again[name]["neighbours"]
        assert row["scores"] == pytest.approx(again[name]["scores"], abs=2e-5)


def test_the_stage_takes_its_tables_from_the_codec_and_not_from_what_training_replaces(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, target in (("data/quality", corpus.folder), ("data/encode", corpus.folder / "codes")):
        Path(folder).parent.mkdir(exist_ok=True)
        Path(folder).symlink_to(target)
    small.mel().save(Path("models/codec"))

    def run(**settings):
        params = Params(similar=SimilarConfig(feature="codes", **settings))
        return stages.similar.run(SimpleNamespace(params=params, out=lambda _: tmp_path / "out"))

    assert run()["kept"] == 11 and read_rows(tmp_path / "out/similar.parquet", SIMILAR)
    with pytest.raises(ValueError, match="copy that voice and name the copy"):
        run(voice="./models/voice")
    with pytest.raises(ValueError, match=r"similar\.voice is for feature codes"):
        SimilarConfig(feature="mfcc", voice="v")


@pytest.mark.parametrize("feature", ["mfcc", "codes"])
def test_the_same_bytes_with_one_worker_and_two_and_any_shards(corpus, monkeypatch, feature):
    corpus.run(feature=feature)
    whole = (corpus.folder / "similar.parquet").read_bytes()
    monkeypatch.setattr(features, "SHARD", 3)
    for workers in (1, 2):
        corpus.run(ExecutorConfig(workers=workers), feature=feature)
        assert (corpus.folder / "similar.parquet").read_bytes() == whole
    assert not (corpus.folder / ".work").exists()


def test_a_run_that_was_stopped_listens_to_no_finished_shard_again(corpus, monkeypatch):
    corpus.run()
    whole = (corpus.folder / "similar.parquet").read_bytes()
    monkeypatch.setattr(features, "SHARD", 2)
    heard, statistics = [], features.mfcc_statistics

    def stopped(wav):
        if len(heard) == 5:
            raise KeyboardInterrupt
        heard.append(wav)
        return statistics(wav)

    monkeypatch.setattr(features, "mfcc_statistics", stopped)
    with pytest.raises(KeyboardInterrupt):
        corpus.run()
    monkeypatch.setattr(features, "mfcc_statistics", lambda wav: heard.append(wav) or statistics(wav))
    corpus.run()
    assert len(heard) == 5 + 3, "two of four shards, four of seven recordings, were done"
    assert (corpus.folder / "similar.parquet").read_bytes() == whole


def _alone_is_a2(folder, figures, rows, plain):
    """a2 killed its worker: it is in the corpus, a reject, and nobody's neighbour; the others' are as in ``plain``."""
    assert figures["kept"] == len(rows) == len(plain) and figures["rejected"] == {"poisoned": 1}
    (row,) = read_rows(folder / "rejects.parquet", REJECTS)
    assert (row["id"], row["stage"], row["value"]) == ("a2", "similar", "its worker died: exit code 9")
    assert rows["a2"]["neighbours"] == rows["a2@0.9"]["neighbours"] == []
    assert not any("a2" in name for row in rows.values() for name in row["neighbours"])
    assert rows["a1"]["neighbours"] == plain["a1"]["neighbours"] and rows["a0"]["neighbours"]


def _deadly(path, *rest, plain=features.load, **part):
    return os._exit(9) if "a2" in path else plain(path, *rest, **part)


def _listen_deadly(*arguments):
    """A shard's work, in a worker, with a recording that ends the process."""
    features.load = _deadly
    _plain_listen(*arguments)


_plain_listen = features._listen


@pytest.mark.slow
def test_a_recording_that_kills_its_worker_has_no_neighbours_and_is_nobodys(corpus, monkeypatch):
    _, plain = corpus.run(top_k=1)
    assert "a2" in plain["a0"]["neighbours"]
    monkeypatch.setattr(features, "SHARD", 3)
    monkeypatch.setattr(features, "_listen", _listen_deadly)
    figures, rows = corpus.run(ExecutorConfig(workers=2), top_k=1)
    _alone_is_a2(corpus.folder, figures, rows, plain)


@pytest.mark.parametrize("feature", ["mfcc", "speaker"])
def test_a_recording_that_cannot_be_read_has_no_neighbours_until_it_can(tmp_path, monkeypatch, feature):
    corpus = Corpus(tmp_path)
    _, plain = corpus.run(feature=feature, top_k=1)
    away = (tmp_path / "a2.wav").rename(tmp_path / "away.wav")
    monkeypatch.setattr(features, "SHARD", 3)

    def killed():
        with monkeypatch.context() as patch:
            patch.setattr("vall_e.corpus.similar._table", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                corpus.run(feature=feature, top_k=1)

    killed()
    figures, rows = corpus.run(feature=feature, top_k=1)
    assert figures["kept"] == len(rows) == len(plain) and figures["rejected"] == {"missing": 1}
    assert rows["a2"]["neighbours"] == rows["a2@0.9"]["neighbours"] == []
    killed()
    away.rename(tmp_path / "a2.wav")
    assert corpus.run(feature=feature, top_k=1)[1] == plain


_A2 = heard(210, 2)


def _vectors_deadly(codes, lengths, tables, plain=features.utterance_vectors):
    same = (codes[:, :, :6].flatten(1) == torch.tensor(_A2)).all(1)
    return os._exit(9) if bool(same.any()) else plain(codes, lengths, tables)


def _read_deadly(*arguments):
    """A shard's work, in a worker, with an utterance whose codes end the process."""
    features.utterance_vectors = _vectors_deadly
    _plain_read(*arguments)


_plain_read = features._read


@pytest.mark.slow
def test_codes_that_kill_a_worker_have_no_neighbours_and_are_nobodys(tmp_path, monkeypatch):
    corpus = Corpus(tmp_path)
    rows = read_rows(tmp_path / "codes/shard-00000.parquet", CODES)
    for number, part in enumerate((rows[:4], rows[4:])):
        write_table(part, CODES, tmp_path / f"codes/shard-{number:05d}.parquet")
    _, plain = corpus.run(feature="codes", top_k=1)
    assert "a2" in plain["a0"]["neighbours"]
    monkeypatch.setattr(features, "_read", _read_deadly)
    figures, rows = corpus.run(ExecutorConfig(workers=2), feature="codes", top_k=1)
    _alone_is_a2(tmp_path, figures, rows, plain)


@pytest.mark.parametrize(
    "damage", [{"codes": [12] * 12}, {"codes": [-1] * 12}, {"codes": [0] * 11}, {"levels": 3, "codes": [0] * 18}]
)
def test_codes_that_are_not_of_the_codec_are_rejects_unless_none_is(tmp_path, damage):
    corpus = Corpus(tmp_path)
    path = tmp_path / "codes/shard-00000.parquet"
    rows = read_rows(path, CODES)
    write_table([row | (damage if row["id"] == "a2" else {}) for row in rows], CODES, path)
    figures, found = corpus.run(feature="codes", top_k=1)
    (row,) = read_rows(tmp_path / "rejects.parquet", REJECTS)
    assert (row["id"], row["rule"], row["threshold"]) == ("a2", "codes", "codes 0 to 11 on 2 levels")
    assert figures["kept"] == len(found) == len(rows) and figures["rejected"] == {"codes": 1}
    assert found["a2"]["neighbours"] == [] and found["a0"]["neighbours"] not in ([], ["a2"])
    write_table([row | damage for row in rows], CODES, path)
    with pytest.raises(ValueError, match=r"no codes of .* can be compared \(codes: .*run the encode stage again"):
        corpus.run(feature="codes", top_k=1)


def test_overlapping_stretches_of_a_recording_are_no_neighbours_and_each_is_heard_by_itself(tmp_path):
    low, high = tone(0.5, 16_000, 200, 0), tone(0.5, 16_000, 900, 1)
    soundfile.write(tmp_path / "long.wav", np.concatenate([low, high, low, high]), 16_000)
    spans = {"a": (0.0, 0.5), "b": (0.25, 0.75), "c": (0.5, 1.0), "d": (1.0, 1.5), "e": (1.5, 2.0)}
    shared = {"path": str(tmp_path / "long.wav"), "recording": "long", "speaker": "s", "language": "en-us"}
    shared |= {"split": "train", "sample_rate": 16_000, "channels": 1, "digest": "0", "group": None, "origin": "given"}
    manifest = [{"id": n, "start": s, "end": e, "seconds": e - s, "text": n, **shared} for n, (s, e) in spans.items()]
    same = {"speaker": "s", "language": "en-us", "split": "train", "phones": ["x"], "frames": 1, "levels": 1}
    codes = [{"id": n, "source": n, "text": n, "codes": [0], "seconds": 0.5, **same} for n in spans]
    write_table(manifest, UTTERANCES, tmp_path / "manifest.parquet")
    write_table(codes, CODES, tmp_path / "codes" / "shard-00000.parquet")
    settings, manifest = SimilarConfig(top_k=4), tmp_path / "manifest.parquet"
    similar(settings, manifest, tmp_path / "codes", tmp_path, ExecutorConfig(), tmp_path / ".work", False)
    near = {row["id"]: row["neighbours"] for row in read_rows(tmp_path / "similar.parquet", SIMILAR)}
    assert near["a"][0] == "d" and near["d"][0] == "a" and near["c"][0] == "e" and near["e"][0] == "c"
    assert set(near["a"]) == {"c", "d", "e"} and set(near["b"]) == {"d", "e"} and set(near["c"]) == {"a", "d", "e"}
