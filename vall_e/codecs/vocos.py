"""Vocos (2306.00814) in place of EnCodec's own decoder: codes to Fourier coefficients in one pass, and back by overlap.

Networks are the vocos package's own. Its feature extractor would download EnCodec only for code tables that the
checkpoint holds too, so it is left out.

Dimensions: B batch, T frames, l levels given of L known to the tables, n codes per level, d code width, H width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.codecs.stream import Context
from vall_e.codecs.weights import fill, from_hub, is_hub_id, read_weights

PUBLISHED = "charactr/vocos-encodec-24khz"
LEVELS = (2, 4, 8, 16)  # of the bandwidths 1.5, 3, 6 and 12 kbit/s, each with normalisation weights of its own
_TABLES = "feature_extractor.codebook_weights"


class VocosDecoder(nn.Module):
    """Codes of EnCodec to waves.

    Args:
        config: ``backbone`` and ``head``, each ``{"class_path": ..., "init_args": ...}`` as in Vocos' config.yaml.
        tables: float [L * n, d], the vectors of all codes level by level.
        codes: n.

    Raises:
        ValueError: a network that is not Vocos with an inverse short-time Fourier transform at its end.
    """

    def __init__(self, config: dict[str, Any], tables: Tensor, codes: int) -> None:
        super().__init__()
        from vocos.heads import ISTFTHead
        from vocos.models import VocosBackbone

        self.config, self.codes = {part: config.get(part) or {} for part in ("backbone", "head")}, codes
        parts = {}
        for part, kind in (("backbone", VocosBackbone), ("head", ISTFTHead)):
            found = str(self.config[part].get("class_path")).rsplit(".", 1)[-1]
            if found != kind.__name__:
                raise ValueError(f"vocos: the {part} is a {found}; this loader knows {kind.__name__}")
            try:
                parts[part] = kind(**self.config[part].get("init_args", {}))
            except TypeError as error:
                raise ValueError(f"vocos: the description of the {part} does not fit: {error}") from None
        self.backbone, self.head = parts["backbone"], parts["head"]
        if self.head.istft.padding != "same":
            raise ValueError("vocos: the head's padding must be 'same', one hop of samples for each frame")
        self.register_buffer("tables", tables.clone())

    @property
    def levels(self) -> int:
        """L, levels that the tables know."""
        return min(len(self.tables) // self.codes, LEVELS[-1])

    @property
    def hop(self) -> int:
        return self.head.istft.hop_length

    @property
    def context(self) -> Context:
        """Frames around a frame: the convolutions' kernels, and windows that overlap it. Normalisation is by frame."""
        kernels = [layer.kernel_size[0] // 2 for layer in self.modules() if isinstance(layer, nn.Conv1d)]
        reach = sum(kernels) - -(self.head.istft.win_length - self.hop) // (2 * self.hop)
        return Context(reach, reach, reach)

    @torch.no_grad()
    def forward(self, codes: Tensor) -> Tensor:
        """``codes`` int64 [B, l, T] with 1 <= l <= L → wav float [B, 1, T * hop].

        Normalised as for the least bandwidth that has l levels.
        """
        codes = codes.to(self.tables.device)
        first = torch.arange(codes.shape[1], device=codes.device)[:, None] * self.codes
        features = F.embedding(codes + first, self.tables).sum(1).transpose(1, 2)
        which = next(i for i, levels in enumerate(LEVELS) if levels >= codes.shape[1])
        bandwidth = torch.tensor([which], device=codes.device) if self.backbone.adanorm else None
        return self.head(self.backbone(features, bandwidth_id=bandwidth))[:, None]

    @classmethod
    def load(cls, weights: str | None, codes: int) -> VocosDecoder:
        """From a folder with ``config.yaml`` and ``pytorch_model.bin`` or ``model.safetensors``, or a hub repository.

        Args:
            weights: ``codec.decoder_weights``; None is the published decoder.
            codes: n of the codec.

        Raises:
            FileNotFoundError: they are not there; the message says what was tried.
            ValueError: not Vocos, or weights that are not plain tensors.
        """
        name = weights or PUBLISHED
        folder = Path(name).expanduser()
        if folder.is_dir():
            found = [folder / file for file in ("model.safetensors", "pytorch_model.bin") if (folder / file).is_file()]
            if not found or not (folder / "config.yaml").is_file():
                raise FileNotFoundError(f"{folder}: expected config.yaml with model.safetensors or pytorch_model.bin")
            settings, path = folder / "config.yaml", found[0]
        elif is_hub_id(name):
            settings, path = (from_hub("vocos", name, file) for file in ("config.yaml", "pytorch_model.bin"))
        else:
            raise FileNotFoundError(f"codec.decoder_weights: {folder} is no folder; name one or a hub repository")
        try:
            config = yaml.safe_load(settings.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{settings} is not readable YAML: {' '.join(str(error).split())[:200]}") from None
        if not isinstance(config, dict):
            raise ValueError(f"{settings} must hold settings, found {type(config).__name__}")
        state = read_weights(path)[0]
        if _TABLES not in state:
            raise ValueError(f"{path} has no {_TABLES}: is it Vocos for mel spectrograms? EnCodec's codes are needed")
        tables = state.pop(_TABLES)
        decoder = cls(config, tables, codes)
        kept = {name: value for name, value in state.items() if not name.startswith("feature_extractor.")}
        fill(decoder, kept | {"tables": tables}, path)
        return decoder.eval().requires_grad_(False)
