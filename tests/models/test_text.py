"""A language model from a checkpoint: the same logits, the same words, the same bytes as ``transformers``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import hf
from tests.tiny import model_config
from vall_e.backbones import huggingface
from vall_e.decoding import SamplingParams
from vall_e.models.text import TextModel
from vall_e.nn.weights import WeightsError

GREEDY = SamplingParams(temperature=0.0)
PROMPTS = [[5, 9, 33], [7, 8, 9, 10, 11, 12, 4], [60]]


@pytest.mark.parametrize("changes", [
    {}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"family": "mixtral"},
], ids=["gqa", "tied", "mha", "mqa", "linear", "dynamic", "mixtral"])  # fmt: skip
def test_logits_and_greedy_text_equal_transformers(tmp_path: Path, changes: dict) -> None:
    """The text grows beyond the trained 16 positions, where dynamic rotary positions stretch step by step."""
    changes = {"eos_token_id": None} | changes
    theirs = hf.FAMILIES[changes.pop("family", "llama")](**changes)
    ours = TextModel.load(hf.save(theirs, tmp_path / "llama"))
    ids = torch.randint(hf.VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-4)
    for prompt in PROMPTS:
        want = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20, pad_token_id=0)
        assert ours.generate([prompt], 20, GREEDY) == [want[0, len(prompt) :].tolist()]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", hf.FAMILIES)
def test_a_round_trip_is_exact(tmp_path: Path, family: str, tied: bool, dtype: torch.dtype) -> None:
    first = hf.save(hf.FAMILIES[family](tie_word_embeddings=tied).to(dtype), tmp_path / "first")
    TextModel.load(first).save(tmp_path / "second")
    before, after = (load_file(folder / "model.safetensors") for folder in (first, tmp_path / "second"))
    assert before.keys() == after.keys()
    assert all(after[name].dtype == dtype and torch.equal(before[name], after[name]) for name in before)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "second", dtype="auto")
    assert read.dtype == dtype
    assert all(torch.equal(tensor, before.get(name, tensor)) for name, tensor in read.state_dict().items())


@pytest.mark.parametrize("backbone, tied", [("llama", False), ("llama", True), ("mixtral", False)])
def test_transformers_loads_ours(tmp_path: Path, backbone: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours = TextModel(model_config(norm_eps=1e-5, backbone=backbone), 23, tied, {"eos_token_id": [3, 4]}).eval()
    ids = torch.randint(23, (2, 9))
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 9_000)
    ours.save(tmp_path / "text")
    assert (tmp_path / "text" / huggingface.INDEX).is_file()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    again = TextModel.load(tmp_path / "text")
    assert huggingface.their_config(again.config) == huggingface.their_config(ours.config)
    assert again.tokens == ours.tokens
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=1e-5, rtol=1e-4)
        # Not bit for bit: weights that are read lie otherwise in memory, and kernels differ by alignment.
        torch.testing.assert_close(again(ids), ours(ids), atol=1e-6, rtol=1e-5)
    assert all(torch.equal(kept, ours.state_dict()[name]) for name, kept in again.state_dict().items())


def test_rows_of_a_ragged_batch_are_what_they_are_alone_and_end_where_they_end(tmp_path: Path) -> None:
    theirs = hf.llama(seed=2)
    ours = TextModel.load(hf.save(theirs, tmp_path / "llama"))
    together = ours.generate(PROMPTS, 12, GREEDY)
    assert together == [row for prompt in PROMPTS for row in ours.generate([prompt], 12, GREEDY)]
    end = together[0][4]
    ours.tokens["eos_token_id"] = end
    stopped = ours.generate(PROMPTS, 12, GREEDY)
    assert stopped == [row[: row.index(end) + 1] if end in row else row for row in together]


def test_the_cache_changes_nothing(tmp_path: Path) -> None:
    ours = TextModel.load(hf.save(hf.llama(eos_token_id=None), tmp_path / "llama"))
    (new,) = ours.generate([PROMPTS[1]], 10, GREEDY)
    ids = list(PROMPTS[1])
    for token in new:
        assert int(ours(torch.tensor([ids]))[0, -1].argmax()) == token
        ids.append(token)


def test_drawing_obeys_its_settings(tmp_path: Path) -> None:
    ours = TextModel.load(hf.save(hf.llama(eos_token_id=None), tmp_path / "llama"))

    def text(seed: int = 0, **settings: float) -> list[list[int]]:
        return ours.generate(PROMPTS, 12, SamplingParams(**settings), seed)

    assert text(temperature=1.0, seed=1) == text(temperature=1.0, seed=1) != text(temperature=1.0, seed=2)
    assert text(temperature=3.0, top_k=1) == text(temperature=0.0) == text(temperature=3.0, top_p=1e-6)
    assert text(temperature=0.0, repetition_penalty=1e9) != text(temperature=0.0)
    for prompts in ([[]], [[hf.VOCABULARY]], [[-1]]):
        with pytest.raises(ValueError, match="at least one id, below 61"):
            ours.generate(prompts, 3, GREEDY)


def test_end_tokens_of_generation_config_win(tmp_path: Path) -> None:
    theirs = hf.llama()
    theirs.generation_config.eos_token_id = [2, 7]
    assert TextModel.load(hf.save(theirs, tmp_path / "llama")).tokens["eos_token_id"] == [2, 7]


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    folder = hf.save(hf.llama(), tmp_path / "llama")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"intermediate_size": 48', '"intermediate_size": 40'))
    with pytest.raises(WeightsError, match=r"backbone\.blocks\.0\.feedforward\.gate\.weight is 48 x 32 and 40 x 32"):
        TextModel.load(folder)
