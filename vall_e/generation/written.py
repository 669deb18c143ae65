"""How likely a model finds what is written. Dimensions: R rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE


def log_probabilities(model: VallE, samples: Sequence[Sample]) -> list[float]:
    """Of what each sample writes and its end: mean over symbols of log p, in nats; one forward.

    Args:
        samples: R of one task that writes, ``symbols`` included.
    """
    with torch.inference_mode():
        packed = pack(samples, model.layout).to(model.device)
        logits = model.symbol_heads[samples[0].vocabulary](model.hidden(packed)).float()
        losses = F.cross_entropy(logits.transpose(1, 2), packed.written, reduction="none")  # 0 where ignored
        return (-losses.sum(1) / (packed.written >= 0).sum(1)).tolist()
