"""``transformers``' Llama with the weights of one of our models, and its ``generate``.

Dimensions: B rows, T positions, D width, n codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.decode.timing import seconds
from vall_e.backbones.huggingface import tensor_names, their_config
from vall_e.models.packing import Place, Sample, pack
from vall_e.models.vall_e import VallE

CACHES = ("dynamic", "static")
CLOSE = 2e-3  # of logits whose deviation is about 1


class Peer:
    """The same network under ``transformers``: it begins from our embeddings of a prompt and goes on from codes.

    Args:
        model: of kind ``ar`` with one level, ``positions: sequence``; the tensors are shared, not copied.
    """

    def __init__(self, model: VallE) -> None:
        self.ours, n = model, model.layout.codes
        config = their_config(model.config, vocab_size=n + 1, eos_token_id=None, bos_token_id=None, pad_token_id=0)
        self.model = LlamaForCausalLM(LlamaConfig(**config)).eval().requires_grad_(False)
        own = dict(model.backbone.named_parameters())
        tensors = {f"model.{theirs}": own[ours] for ours, theirs in tensor_names(model.config).items()}
        table = torch.cat((self._embedded_codes(), torch.zeros(1, model.config.dim)))
        tensors |= {"model.embed_tokens.weight": table, "lm_head.weight": model.heads.heads[0].weight}
        self.model.load_state_dict(tensors, assign=True)

    def _embedded_codes(self) -> Tensor:
        """What our model reads of each response code, [n, D]."""
        layout = self.ours.layout
        code = torch.arange(layout.codes)[None, None] + layout.codes + 1
        nothing = torch.zeros_like(code[0])
        return self.ours.embeddings.tokens(nothing, torch.full_like(nothing, Place.RESPONSE), code)[0]

    def check(self) -> float:
        """Greatest difference of the logits of one sequence, prompt and codes.

        Raises:
            RuntimeError: they are not the same network.
        """
        rng, n = np.random.default_rng(1), self.ours.layout.codes
        spoken = rng.integers(n, size=(1, 7))
        packed = pack([Sample(rng.integers(3, 9, size=5), rng.integers(n, size=(1, 6)), spoken)], self.ours.layout)
        with torch.inference_mode():
            mine = self.ours.heads(self.ours.hidden(packed)[0], 0, [])
            embedded = self.ours.embeddings(packed)
            begin = int(packed.response[0]) + 1
            embedded[:, begin:] = self.model.get_input_embeddings()(torch.from_numpy(spoken))
            theirs = self.model(inputs_embeds=embedded).logits[0]
        difference = float((mine - theirs)[:, :n].abs().max())
        if not difference < CLOSE:
            raise RuntimeError(f"logits of the two networks differ by {difference:.2g}: they cannot be compared")
        return difference

    def generate(self, prompts: Sequence[Sample], tokens: int, cache: str) -> Tensor:
        """Codes int64 [B, tokens] drawn at temperature 1; prompts of one length."""
        packed = pack([replace(prompt, spoken=None) for prompt in prompts], self.ours.layout)
        with torch.inference_mode():
            embedded = self.ours.embeddings(packed)
            return self.model.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2], dtype=torch.int64),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=tokens,
                cache_implementation=None if cache == "dynamic" else cache,
            )

    def best_cache(self, prompts: Sequence[Sample], tokens: int) -> tuple[str, dict[str, float]]:
        """The faster of its cache settings, and tokens a second with each; one run of each does not count."""
        speed = {}
        for cache in CACHES:
            self.generate(prompts, tokens, cache)
            speed[cache] = len(prompts) * tokens / seconds(lambda cache=cache: self.generate(prompts, tokens, cache))
        return max(speed, key=speed.__getitem__), speed
