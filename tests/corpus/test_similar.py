"""The similar stage: who is near whom, never itself, never across speakers or splits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import stages.similar
from tests.codecs import small
from tests.corpus.test_encode import tone
from vall_e.config import Params
from vall_e.corpus.schema import CODES, MANIFEST, SIMILAR, read_rows, write_table
from vall_e.corpus.similar import mfcc_statistics, nearest, similar
from vall_e.preparation import SimilarConfig


def brute_force(features, texts, k):
    """Neighbours by sorting all pairs with Python's own sort."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    out = []
    for i in range(len(unit)):
        pairs = [(-round(float(unit[i] @ unit[j]), 5), j) for j in range(len(unit)) if texts[i] != texts[j]]
        out.append([j for _, j in sorted(pairs)[:k]])
    return out


@pytest.mark.parametrize("chunk", [1, 50, 10_000])
def test_nearest_equals_sorting_all_pairs_whatever_the_chunk(chunk):
    features = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    texts = [str(i // 4) for i in range(40)]
    found = nearest(features, texts, 5, chunk)
    assert [[i for i, _ in row] for row in found] == brute_force(features, texts, 5)
    for row in found:
        scores = [score for _, score in row]
        assert scores == sorted(scores, reverse=True) and max(scores) <= 1.0


def test_equals_come_in_order_and_few_rows_give_few_neighbours():
    features = np.ones((5, 3), dtype=np.float32)

    def indices(rows, texts, k):
        return [[i for i, _ in row] for row in nearest(rows, texts, k)]

    assert indices(features, list("abcde"), 3) == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    assert indices(features, list("aabbb"), 3) == [[2, 3, 4], [2, 3, 4], [0, 1], [0, 1], [0, 1]]
    assert indices(features[:2], list("ab"), 3) == [[1], [0]]
    assert indices(features[:1], ["a"], 3) == [[]]
    assert nearest(np.array([[0.0, 0.0], [1.0, 0.0]]), ["a", "b"], 1) == [[(1, 0.0)], [(0, 0.0)]]


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
                "id": name, "path": str(path), "speaker": name[0], "text": None, "language": "en-us", "split": split,
                "seconds": 0.5, "sample_rate": 16_000, "channels": 1, "digest": "0",
            })  # fmt: skip
            for suffix in ("", "@0.9") if split == "train" and name != "a3" else ("",):
                codes.append({
                    "id": name + suffix, "speaker": name[0] + suffix, "language": "en-us", "split": split,
                    "text": name,
                    "phones": ["x"], "frames": 6, "levels": 2, "codes": heard(hertz, index), "seconds": 0.5,
                    "source": name,
                })  # fmt: skip
        write_table(manifest, MANIFEST, folder / "manifest.parquet")
        write_table(codes, CODES, folder / "codes" / "shard-00000.parquet")

    def run(self, **settings):
        tables = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
        manifest, codes = self.folder / "manifest.parquet", self.folder / "codes"
        figures = similar(SimilarConfig(**settings), manifest, codes, self.folder, False, tables)
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
    write_table([], MANIFEST, tmp_path / "manifest.parquet")
    with pytest.raises(ValueError, match=r"lacks a0.*run the encode stage again"):
        similar(SimilarConfig(), tmp_path / "manifest.parquet", corpus.folder / "codes", tmp_path, False)


def test_codes_are_compared_whatever_the_windows_and_batches(corpus, monkeypatch):
    _, rows = corpus.run(feature="codes", top_k=3)
    monkeypatch.setattr("vall_e.corpus.similar._WINDOW", 2)
    monkeypatch.setattr("vall_e.corpus.similar._FRAMES", 6)
    _, again = corpus.run(feature="codes", top_k=3)
    for name, row in rows.items():
        assert row["neighbours"] == again[name]["neighbours"]
        assert row["scores"] == pytest.approx(again[name]["scores"], abs=2e-5)


def test_the_stage_takes_its_tables_from_the_codec_and_not_from_what_training_replaces(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, target in (("data/ingest", corpus.folder), ("data/encode", corpus.folder / "codes")):
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
