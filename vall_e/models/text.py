"""A plain language model: embedding, backbone, head. What a backbone from a text checkpoint is held against.

Dimensions: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vall_e.backbones import huggingface
from vall_e.backbones.base import build_backbone
from vall_e.decoding import SamplingParams
from vall_e.family import ModelConfig
from vall_e.nn.cache import Cache
from vall_e.nn.weights import fill
from vall_e.sampling.chain import RowNoise, sample

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class TextModel(nn.Module):
    """A causal language model.

    Args:
        config: of the backbone.
        vocabulary: V.
        tied: the head is the embedding's table.
        tokens: ids of ``bos_token_id``, ``eos_token_id`` (one or several) and ``pad_token_id``, where there are any.
    """

    def __init__(
        self, config: ModelConfig, vocabulary: int, tied: bool = False, tokens: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.config, self.tokens = config, tokens or {}
        self.embedding = nn.Embedding(vocabulary, config.dim)
        self.backbone = build_backbone(config)
        self.head = None if tied else nn.Linear(config.dim, vocabulary, bias=False)

    @classmethod
    def empty(cls, theirs: dict[str, Any]) -> Self:
        """A model of their configuration, without memory for its weights (on the meta device)."""
        tokens = {name: theirs[name] for name in _TOKENS if theirs.get(name) is not None}
        with torch.device("meta"):
            config = huggingface.our_config(theirs)
            return cls(config, theirs["vocab_size"], bool(theirs["tie_word_embeddings"]), tokens)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a checkpoint of ``transformers``, a folder or a repository of the hub, in the dtype that it has.

        Raises:
            FileNotFoundError: it is not there.
            WeightsError: it is damaged, pickled, or of an architecture that is not built here.
        """
        folder = huggingface.find(path)
        model = cls.empty(huggingface.read_config(folder))
        tensors = huggingface.read_weights(folder)
        if model.head is None:
            tensors.pop(huggingface.HEAD, None)
        names = {theirs: ours for ours, theirs in model.names().items()}
        tensors = {names.get(name, name): tensor for name, tensor in tensors.items()}
        fill(model, tensors, folder, "Its config.json and its weights must be of one checkpoint", assign=True)
        return model.to(device).eval()

    def save(self, folder: Path) -> None:
        """Write a folder that ``transformers`` loads as the same model."""
        state, names = self.state_dict(), self.names()
        theirs = huggingface.their_config(
            self.config,
            vocab_size=self.embedding.num_embeddings,
            tie_word_embeddings=self.head is None,
            torch_dtype=str(self.embedding.weight.dtype).removeprefix("torch."),
            **{name: self.tokens.get(name) for name in _TOKENS},  # null, or theirs have defaults
        )
        huggingface.write_checkpoint(folder, theirs, {names[name]: tensor for name, tensor in state.items()})

    def names(self) -> dict[str, str]:
        """Our tensor names → theirs without ``model.``."""
        names = {f"backbone.{ours}": theirs for ours, theirs in huggingface.tensor_names(self.config).items()}
        names |= {"embedding.weight": huggingface.EMBEDDING}
        return names if self.head is None else names | {"head.weight": huggingface.HEAD}

    def hidden(self, ids: Tensor, cache: Cache | None = None, counts: Tensor | None = None) -> Tensor:
        """Hidden states [B, T, D] of ``ids`` int64 [B, T], behind what ``cache`` holds.

        Args:
            counts: int64 [B], how many of each row's ids are no padding, with a cache; None is all.
        """
        length = ids.shape[1]
        x = self.embedding(ids)
        if cache is None:
            return self.backbone(x, torch.arange(length, device=ids.device).expand(ids.shape))
        positions = cache.positions(length)
        cache.begin(length, counts)
        out = self.backbone(x, positions, None, cache)
        cache.end()
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] → [..., V]."""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, T, V] of what follows each of ``ids`` int64 [B, T]."""
        return self.logits(self.hidden(ids))

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: SamplingParams, seed: int = 0
    ) -> list[list[int]]:
        """Go on from each prompt up to an end token or ``max_new_tokens``.

        Args:
            prompts: token ids, at least one each; they may be of different lengths.
            sampling: penalties look back over what is new.
            seed: of everything drawn.

        Returns:
            the new ids of each prompt; an end token is among them.

        Raises:
            ValueError: an empty prompt, or an id beyond the vocabulary.
        """
        device, rows = self.embedding.weight.device, len(prompts)
        if not all(prompts) or not all(0 <= i < self.embedding.num_embeddings for p in prompts for i in p):
            raise ValueError(f"a prompt holds at least one id, below {self.embedding.num_embeddings}")
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ids = pad_sequence([torch.tensor(p, device=device) for p in prompts], batch_first=True)
        cache = self.backbone.new_cache(rows, ids.shape[1] + max_new_tokens, self.embedding.weight.dtype, device)
        last = self.hidden(ids, cache, lengths)[torch.arange(rows, device=device), lengths - 1]
        streams = [(seed * 1_000_003 + row) % 2**63 for row in range(rows)]
        noise = RowNoise(streams, (self.embedding.num_embeddings,), device)
        history = torch.full((rows, sampling.repetition_window), -1, dtype=torch.int64, device=device)
        ends = torch.tensor(self._ends, dtype=torch.int64, device=device)
        out: list[list[int]] = [[] for _ in prompts]
        done = torch.zeros(rows, dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            token = sample(
                self.logits(last).float(), noise.next(), temperature=sampling.temperature, k=sampling.top_k,
                p=sampling.top_p, penalty=sampling.repetition_penalty, history=history,
            )  # fmt: skip
            for row in (~done).nonzero()[:, 0].tolist():
                out[row].append(int(token[row]))
            done |= torch.isin(token, ends)
            if bool(done.all()) or step + 1 == max_new_tokens:
                break
            history = torch.cat((history[:, 1:], token[:, None]), dim=1)
            last = self.hidden(token[:, None], cache)[:, 0]
        return out

    @property
    def _ends(self) -> list[int]:
        end = self.tokens.get("eos_token_id", [])
        return list(end) if isinstance(end, list | tuple) else [end]
