"""Utterances compared by what their codes stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codecs import small
from tests.tiny import PHONES, model_config
from vall_e.corpus.nearest import Barred, nearest
from vall_e.decoding import SamplingConfig
from vall_e.models.checkpoint import VoiceConfig, save_model
from vall_e.models.similarity import code_tables, utterance_vectors
from vall_e.preparation import CodecConfig, EncodeConfig

LEVELS, CODES, WIDTH = 3, 12, 8


@pytest.fixture
def tables() -> Tensor:
    return torch.randn(LEVELS, CODES, WIDTH, generator=torch.Generator().manual_seed(0))


def utterances(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(CODES, (LEVELS, frames), generator=generator) for frames in lengths]


def vectors(rows: list[Tensor], tables: Tensor, longer: int = 0) -> Tensor:
    """Of one batch, padded with codes that mean something, ``longer`` than need be."""
    lengths = torch.tensor([row.shape[1] for row in rows])
    padded = torch.full((len(rows), LEVELS, int(lengths.max()) + longer), CODES - 1)
    for slot, row in zip(padded, rows, strict=True):
        slot[:, : row.shape[1]] = row
    return utterance_vectors(padded, lengths, tables)


def cosines(features: Tensor) -> np.ndarray:
    """As the similar stage has them, float [U, U], each utterance with itself included."""
    twice = np.concatenate([features.numpy()] * 2)
    found = np.zeros((len(features), len(features)))
    texts = [*"a" * len(features), *"b" * len(features)]  # neighbours are of another text: here, the copies
    for row, near, scores in zip(found, *nearest(twice, Barred.of(texts), len(features)), strict=False):
        row[near - len(features)] = scores
    return found


def test_it_is_the_mean_and_deviation_of_sums_over_levels(tables: Tensor) -> None:
    (row,) = utterances([5])
    frames = torch.stack([sum(tables[level, row[level, t]] for level in range(LEVELS)) for t in range(5)])
    want = torch.cat((frames.mean(0), frames.std(0, correction=0)))
    torch.testing.assert_close(vectors([row], tables)[0], want)


def test_similarity_is_symmetric_and_1_with_itself(tables: Tensor) -> None:
    found = cosines(vectors(utterances([4, 9, 1, 30, 6]), tables))
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(np.diag(found), 1.0)
    assert found[~np.eye(5, dtype=bool)].max() < 0.99


def test_neither_the_batch_nor_padding_changes_it(tables: Tensor) -> None:
    rows = utterances([4, 9, 1, 30, 6, 9])
    alone = torch.cat([vectors([row], tables) for row in rows])
    for together in (vectors(rows, tables), vectors(rows, tables, 7), vectors(rows[::-1], tables).flip(0)):
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_a_speakers_utterances_are_nearer_than_anothers(tables: Tensor) -> None:
    """What is said (level 0) is anything; the speaker is heard in the other levels, each with codes of its own."""
    rng, rows = np.random.default_rng(0), []
    for index in range(8):
        said = rng.integers(CODES, size=(1, 80))
        voice = rng.integers(4, size=(2, 80)) + 6 * (index % 2)
        rows.append(torch.from_numpy(np.concatenate((said, voice))))
    found = cosines(vectors(rows, tables))
    same = np.equal.outer(np.arange(8) % 2, np.arange(8) % 2)
    assert found[same].min() > found[~same].max()


def voice(folder: Path) -> tuple[Path, VoiceConfig]:
    codec = small.mel()
    config = VoiceConfig(
        model=model_config(), levels=codec.levels, codes=codec.codes, phones=PHONES, codec=CodecConfig(),
        encode=EncodeConfig(), sampling=SamplingConfig(), language="en-us", with_stress=True, seconds_per_phone=0.1,
        prompt_seconds=2.0,
    )  # fmt: skip
    torch.manual_seed(0)
    save_model(folder, config.build(), config)
    codec.save(folder / "codec")
    return folder, config


def test_tables_are_the_voices_or_the_codecs(tmp_path: Path) -> None:
    folder, config = voice(tmp_path / "voice")
    books = torch.stack(small.mel().codebooks())
    torch.testing.assert_close(code_tables(None, CodecConfig(), folder / "codec"), books)
    torch.manual_seed(0)
    fresh = config.build().embeddings.code
    for mine, table in zip(code_tables(folder, CodecConfig(), folder / "codec"), fresh, strict=True):
        assert torch.equal(mine, table.weight[1 : config.codes + 1])


def test_another_codec_and_one_without_tables_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = voice(tmp_path / "voice")
    small.mel(seed=1).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"voice speaks through another codec than .*other"):
        code_tables(folder, CodecConfig(), tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        code_tables(tmp_path / "nowhere", CodecConfig(), tmp_path / "other")
    monkeypatch.setattr("vall_e.codecs.mel.MelCodec.codebooks", lambda _: [])
    with pytest.raises(ValueError, match=r"no codebooks: name a trained voice"):
        code_tables(None, CodecConfig(), tmp_path / "other")
