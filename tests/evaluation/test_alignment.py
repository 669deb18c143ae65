"""Forced alignment with a wav2vec2 CTC model that the test makes: it hears which of a few tones sounds.

The weights are random but for what the test says, so the real loading and the real alignment run, not real speech.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vall_e.evaluation.alignment import AlignerError, ForcedAligner, in_order
from vall_e.evaluation.hearing import Word

RATE = 16_000
LABELS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6, "c": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("ctc")
    (folder / "vocab.json").write_text(json.dumps(LABELS))
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(LABELS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16),
        conv_stride=(20, 16),
        conv_kernel=(20, 16),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=RATE)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))).save_pretrained(folder)
    return folder


class _Sure(torch.nn.Module):
    """Frames of 20 ms that say what ``script`` says."""

    def __init__(self, script: list[str]) -> None:
        super().__init__()
        self.script = script

    def forward(self, wav: torch.Tensor):
        logits = torch.full((1, len(self.script), len(LABELS)), -5.0)
        for frame, label in enumerate(self.script):
            logits[0, frame, LABELS[label]] = 5.0
        return type("Out", (), {"logits": logits})


def test_a_real_model_is_loaded_and_places_words_in_order(folder: Path) -> None:
    aligner = ForcedAligner(str(folder), "en", "cpu")
    wav = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    words = ["Abba,", "cab", "7", "—", "bac"]
    found = aligner.align(wav, words)
    assert [word.text for word in found] == words
    times = [time for word in found for time in (word.start, word.end)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= 1.0
    assert all(0 <= word.score <= 1 for word in found)
    assert found[3].start == found[3].end  # nothing of it can be said
    assert found == aligner.align(wav, words)


def test_words_are_where_the_model_hears_them(folder: Path) -> None:
    aligner = ForcedAligner(str(folder), "en", "cpu")
    pad = "<pad>"
    script = [pad] * 10 + ["a", "a", "b"] + [pad] * 5 + ["|"] + [pad] * 20 + ["c", "c"] + [pad] * 9
    aligner._model = _Sure(script)
    wav = np.zeros(int(0.02 * len(script) * RATE), np.float32)
    first, second = aligner.align(wav, ["ab", "c"])
    assert (first.start, first.end) == pytest.approx((0.20, 0.26))
    assert (second.start, second.end) == pytest.approx((0.78, 0.82))
    assert first.score > 0.99
    # A character that the model does not know takes whatever is said there.
    first, second = aligner.align(wav, ["ab", "é"])
    assert (second.start, second.end) == pytest.approx((0.78, 0.82), abs=0.021)


def test_what_does_not_fit_is_not_aligned(folder: Path) -> None:
    aligner = ForcedAligner(str(folder), "en", "cpu")
    assert aligner.align(np.zeros(1600, np.float32), ["abcabc"] * 30) is None
    assert aligner.align(np.zeros(1600, np.float32), ["—"]) is None


def test_a_model_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(AlignerError, match="no such folder"):
        ForcedAligner("./no/such/model", "en", "cpu")
    with pytest.raises(AlignerError, match="did not load"):
        ForcedAligner(str(tmp_path), "en", "cpu")


def test_words_are_put_in_order() -> None:
    words = [Word("a", -1.0, 0.5, 1.2), Word("b", 0.3, 0.2, 0.5), Word("c", 0.9, 7.0, 0.5)]
    assert [(w.start, w.end) for w in in_order(words, 0.0, 1.0)] == [(0.0, 0.5), (0.5, 0.5), (0.9, 1.0)]
