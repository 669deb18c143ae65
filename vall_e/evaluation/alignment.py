"""When each word was said: by the recogniser's attention, or by forced alignment with a CTC model.

Dimensions: N samples, B clips in a batch, S encoder positions (50 a second), T frames of the CTC model, C its labels.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vall_e.evaluation.encoder import FRAME, RATE
from vall_e.evaluation.hearing import Word

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from faster_whisper.tokenizer import Tokenizer

# Writing without spaces: a word is a character.
UNSPACED = ("ja", "zh", "yue", "th", "lo", "my", "km", "bo")
_BLANKS = ("[pad]", "<pad>", "-", "[blank]")


class AlignerError(ValueError):
    """A model for forced alignment cannot be loaded."""


def attention_words(
    model: WhisperModel,
    tokenizer: Tokenizer,
    encoded: np.ndarray,
    tokens: Sequence[list[int]],
    spans: Sequence[tuple[float, float, float]],
) -> list[tuple[Word, ...]]:
    """Words by dynamic time warping over the attention of Whisper's alignment heads (2212.04356; faster-whisper).

    Args:
        encoded: float32 [B, S, D].
        tokens: of each clip's text, without special ones.
        spans: for each clip the time at which the encoder begins, and between which the words are, seconds.

    Returns:
        Words of each clip in order, without overlap; punctuation is part of its word.
    """
    from faster_whisper.transcribe import get_ctranslate2_storage, merge_punctuations

    out: list[tuple[Word, ...]] = []
    for index, (ids, (zero, low, high)) in enumerate(zip(tokens, spans, strict=True)):
        if not ids:
            out.append(())
            continue
        # One by one: in a batch the shorter texts are aligned over the longest clip's frames.
        frames = min(2 * encoded.shape[1], int((high - zero) * RATE) // FRAME)
        found = model.find_alignment(tokenizer, [ids], get_ctranslate2_storage(encoded[index : index + 1]), frames)[0]
        merge_punctuations(found, "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、")
        words = [Word(w["word"].strip(), zero + w["start"], zero + w["end"], float(w["probability"])) for w in found]
        out.append(in_order([word for word in words if word.text], low, high))
    return out


def in_order(words: Sequence[Word], low: float, high: float) -> tuple[Word, ...]:
    """The words within ``low``..``high`` seconds, none beginning before the one before it ends."""
    out, at = [], low
    for word in words:
        start = min(max(word.start, at), high)
        at = min(max(word.end, start), high)
        out.append(Word(word.text, float(start), float(at), min(1.0, max(0.0, float(word.score)))))
    return tuple(out)


def cached_model(language: str) -> str | None:
    """WhisperX's model for Whisper's code ``language`` where it is on this machine already, else None."""
    import torch
    import torchaudio
    from huggingface_hub import try_to_load_from_cache
    from whisperx.alignment import DEFAULT_ALIGN_MODELS_HF, DEFAULT_ALIGN_MODELS_TORCH

    if name := DEFAULT_ALIGN_MODELS_TORCH.get(language):
        file = Path(torch.hub.get_dir()) / "checkpoints" / getattr(torchaudio.pipelines, name)._path
        return name if file.is_file() else None
    name = DEFAULT_ALIGN_MODELS_HF.get(language)
    return name if name and isinstance(try_to_load_from_cache(name, "config.json"), str) else None


class ForcedAligner:
    """WhisperX's forced alignment (2303.00747, section 2.3): given words against a CTC model's frames.

    The model is WhisperX's to load and the path torchaudio's to find; ``whisperx.align`` itself is not called, because
    it fetches a sentence splitter from the network.

    Args:
        model: local folder, hub name or torchaudio bundle of a wav2vec2 CTC model.
        language: Whisper's code.
        device: cpu or cuda.

    Raises:
        AlignerError: the model did not load.
    """

    def __init__(self, model: str, language: str, device: str) -> None:
        from whisperx.alignment import load_align_model

        if (os.sep in model or model.startswith(".")) and model.count("/") != 1 and not Path(model).is_dir():
            raise AlignerError(f"transcribe.align {model}: no such folder")
        try:
            self._model, about = load_align_model(language, device, model_name=model)
        except Exception as error:
            raise AlignerError(
                f"transcribe.align {model} ({language}) did not load: {error}; name the folder of a wav2vec2 "
                "CTC model, or set transcribe.align to off"
            ) from error
        self._model.eval()
        self._labels: dict[str, int] = about["dictionary"]
        self._bundle = about["type"] == "torchaudio"
        self._blank = next((self._labels[name] for name in _BLANKS if name in self._labels), 0)
        self._device = device

    def align(self, wav: np.ndarray, words: Sequence[str]) -> tuple[Word, ...] | None:
        """Times of ``words`` in ``wav`` float32 [N] at 16 kHz, seconds from its start; None where they do not fit.

        Characters that the model does not know stand for whatever is said there.
        """
        import torch
        import torchaudio.functional as F

        targets, owners = self._targets(words)
        if not targets:
            return None
        with torch.inference_mode():
            sound = torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32))[None].to(self._device)
            logits = self._model(sound)[0] if self._bundle else self._model(sound).logits
            frames = torch.log_softmax(logits.float(), dim=-1).cpu()  # [1, T, C]
            known = torch.ones(frames.shape[-1], dtype=torch.bool)
            known[self._blank] = False
            frames = torch.cat([frames, frames[..., known].amax(-1, keepdim=True)], dim=-1)
            labels = [frames.shape[-1] - 1 if target is None else target for target in targets]
            repeats = sum(a == b for a, b in itertools.pairwise(labels))
            if frames.shape[1] < len(labels) + repeats:
                return None
            path, scores = F.forced_align(frames, torch.tensor([labels]), blank=self._blank)
            spans = F.merge_tokens(path[0], scores[0].exp(), blank=self._blank)
        step = len(wav) / RATE / frames.shape[1]
        out = []
        for index, word in enumerate(words):
            mine = [span for span, owner in zip(spans, owners, strict=True) if owner == index]
            if mine:
                score = sum(span.score * len(span) for span in mine) / sum(len(span) for span in mine)
                out.append(Word(word, mine[0].start * step, mine[-1].end * step, float(score)))
            else:
                at = out[-1].end if out else 0.0
                out.append(Word(word, at, at, 0.0))
        return in_order(out, 0.0, len(wav) / RATE)

    def _targets(self, words: Sequence[str]) -> tuple[list[int | None], list[int]]:
        """Labels of the characters of all words, None for those that the model does not know, and whose they are."""
        targets: list[int | None] = []
        owners: list[int] = []
        separator: Any = self._labels.get("|")
        for index, word in enumerate(words):
            characters = [c for c in word.lower() if c.isalnum() or c in self._labels]
            if characters and targets and separator is not None:
                targets.append(separator)
                owners.append(-1)
            for character in characters:
                label = self._labels.get(character)
                targets.append(None if label == self._blank else label)
                owners.append(index)
        return targets, owners
