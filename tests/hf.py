"""Tiny checkpoints in Hugging Face's layout, made by ``transformers`` itself."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
    "rope_theta": 500.0, "initializer_range": 0.3, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip


def llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(SIZES | changes))).eval()


def mixtral(seed: int = 0, **changes: object) -> MixtralForCausalLM:
    """``head_dim`` is given because ``transformers`` stretches no rotary positions without it."""
    torch.manual_seed(seed)
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8}
    return MixtralForCausalLM(MixtralConfig(**(SIZES | experts | changes))).eval()


FAMILIES = {"llama": llama, "mixtral": mixtral}


def save(model: PreTrainedModel, folder: Path, **how: object) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Words "w3" to "w60" with the ids of their numbers; 0 is unknown, 1 begins, 2 ends."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
