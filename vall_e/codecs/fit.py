"""Fit the bundled mel codec on a corpus.

Loss: L1 on the decoder's log magnitudes and on the log-mel of them, plus commitment. Half of the rows use only the
first levels (level dropout, SoundStream 2107.03312, section III-C), which moves what matters into level 0; speed and
gain vary, so that few voices do not become the only ones it can code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vall_e.codecs.mel import MelCodec
from vall_e.preparation import MelCodecConfig

Progress = Callable[[int, dict[str, float]], None]


def _segments(wavs: Sequence[np.ndarray], config: MelCodecConfig, generator: np.random.Generator) -> Tensor:
    """Random pieces float [B, 1, segment_frames * hop], speed and gain perturbed."""
    length = config.segment_frames * config.hop
    out = np.zeros((config.batch_size, 1, length), dtype=np.float32)
    for row in out[:, 0]:
        speed = generator.uniform(0.85, 1.18)
        need = int(length * speed) + 1
        filled = 0
        piece = np.zeros(need, dtype=np.float32)
        while filled < need:  # short clips follow each other with a pause between
            wav = wavs[generator.integers(len(wavs))]
            start = generator.integers(max(1, len(wav) - need)) if len(wav) > need else 0
            part = wav[start : start + need - filled]
            piece[filled : filled + len(part)] = part
            filled += len(part) + int(generator.uniform(0, 0.1) * config.sample_rate)
        row[:] = np.interp(np.linspace(0, need - 1, length), np.arange(need), piece)
        row *= generator.uniform(0.6, 1.3)
    return torch.from_numpy(out)


def fit_mel_codec(
    config: MelCodecConfig, wavs: Sequence[np.ndarray], progress: Progress | None = None
) -> tuple[MelCodec, dict[str, float]]:
    """Train a codec on mono waveforms at ``config.sample_rate``.

    Args:
        config: sizes, steps, rate and seed.
        wavs: float32 [N] each.
        progress: called with (step, figures) after each step.

    Returns:
        the codec in evaluation mode and its last figures: ``spectral_l1`` (in standard deviations, all
        levels) and ``usage`` (perplexity of level 0's codes over n).

    Raises:
        ValueError: no audio to fit on.
    """
    if not wavs:
        raise ValueError("no audio to fit the codec on: did every utterance become a reject?")
    torch.manual_seed(config.seed)
    generator = np.random.default_rng(config.seed)
    draws = torch.Generator().manual_seed(config.seed)
    codec = MelCodec(config)
    with torch.no_grad():
        codec.measure(torch.cat([codec.magnitude(_segments(wavs, config, generator)) for _ in range(8)]))
    optimizer = torch.optim.AdamW(codec.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, min(100, config.steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 1.0) * (1 - 0.98 * max(0, s - warmup) / config.steps)
    )
    figures: dict[str, float] = {}
    for step in range(config.steps):
        magnitude = codec.magnitude(_segments(wavs, config, generator))
        keep = torch.randint(1, config.levels + 1, (config.batch_size,), generator=draws)
        keep[config.batch_size // 2 :] = config.levels
        with torch.autocast(magnitude.device.type, torch.bfloat16):  # products only; vectors and losses stay whole
            z = codec.analyse(codec.log_mel(magnitude)).float()
        quantised, commitment = codec.quantizer(z, keep, draws)
        with torch.autocast(magnitude.device.type, torch.bfloat16):
            predicted = codec.synthesise(quantised).float()
        target = codec.log_bins(magnitude)
        mel_l1 = F.l1_loss(codec.log_mel(codec.to_magnitude(predicted)), codec.log_mel(magnitude))
        bins_l1 = F.l1_loss(predicted, target)
        loss = mel_l1 + 0.5 * bins_l1 + 0.25 * commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        figures = {"mel_l1": mel_l1.item(), "bins_l1": bins_l1.item(), "usage": _usage(codec)}
        if progress is not None:
            progress(step + 1, figures)
    return codec.eval(), figures


def _usage(codec: MelCodec) -> float:
    """Perplexity of level 0's codes over the number of codes, 0 to 1."""
    p = codec.quantizer.usage[0] / codec.quantizer.usage[0].sum()
    return float((-(p * (p + 1e-9).log()).sum()).exp() / codec.codes)
