"""Utterances compared by what their codes stand for, without listening to them.

A frame is the sum over levels of its codes' vectors, as the model reads it; an utterance is the mean and the deviation
of its frames; two are as alike as the cosine of theirs. The vectors are a trained voice's, or the codec's own, from
which a voice's start.

Dimensions: B utterances, L levels, T frames, n codes per level, d width of a code's vector.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vall_e.codecs.base import load_codec
from vall_e.models.checkpoint import VoiceError, load_model, same_codec
from vall_e.preparation import CodecConfig


def utterance_vectors(codes: Tensor, lengths: Tensor, tables: Tensor) -> Tensor:
    """One vector an utterance, float32 [B, 2d]: mean and deviation over its frames.

    Args:
        codes: int64 [B, L, T], padded on the right with any codes.
        lengths: int64 [B], frames of each.
        tables: float [L, n, d].
    """
    frames = sum(table[codes[:, level]] for level, table in enumerate(tables))
    real = (torch.arange(codes.shape[2]) < lengths[:, None])[..., None]
    count = lengths[:, None].clamp(min=1)
    mean = frames.where(real, 0.0).sum(1) / count
    variance = (frames - mean[:, None]).square().where(real, 0.0).sum(1) / count
    return torch.cat((mean, variance.sqrt()), dim=1)


def code_tables(voice: Path | None, codec: CodecConfig, codec_folder: Path) -> Tensor:
    """What codes stand for, float32 [L, n, d]: of ``voice`` its tables of prompt codes, of None the codec's codebooks.

    Raises:
        FileNotFoundError: a file of the voice or the codec is missing.
        ValueError: the voice is damaged or speaks through another codec, or the codec has no codebooks.
    """
    if voice is None:
        books = load_codec(codec, codec_folder).codebooks()
        if not books:
            raise ValueError("similar.feature codes: this codec has no codebooks: name a trained voice, similar.voice")
        return torch.stack(books).float()
    model, config = load_model(voice)
    if not same_codec(voice, codec_folder):
        raise VoiceError(f"similar.voice: {voice} speaks through another codec than {codec_folder}")
    return torch.stack([table.weight.detach()[1 : config.codes + 1] for table in model.embeddings.code])
