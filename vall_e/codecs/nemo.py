"""NeMo's audio codecs of finite scalars: 44.1 kHz, 8 groups of 1,000 codes, 86 frames/s, out of a ``.nemo`` checkpoint.

A ``.nemo`` file is a tar with ``model_config.yaml`` and ``model_weights.ckpt``. The networks are built here from that
configuration (``audio-codec-44khz`` and the like: HiFi-GAN both ways; ``mel-codec-44khz``: mel bands in), so that NeMo
itself is not needed, and the weights are read as plain tensors.

Dimensions: B batch, N samples, L levels, T frames = ceil(N / hop), n codes per level, D latent width.
"""

from __future__ import annotations

import io
import math
import tarfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from vall_e.codecs.base import Codec
from vall_e.codecs.fsq import GroupedScalars
from vall_e.codecs.hifigan import HiFiGANDecoder, HiFiGANEncoder, MultiBandMelEncoder, plain_names
from vall_e.codecs.rows import by_rows
from vall_e.codecs.stream import Context, WaveStream
from vall_e.codecs.weights import fill, from_hub, is_hub_id, plain_tensors, read_saved, write_codec
from vall_e.preparation import CodecConfig

PUBLISHED = "nvidia/audio-codec-44khz"
_ENCODERS = {"HiFiGANEncoder": HiFiGANEncoder, "MultiBandMelEncoder": MultiBandMelEncoder}
_DECODERS = {"HiFiGANDecoder": HiFiGANDecoder}
_QUANTIZERS = {"GroupFiniteScalarQuantizer": GroupedScalars}
_FEATURIZER = "encoder.mel_processor.preprocessor.featurizer."


class _Network(nn.Module):
    """Encoder, quantiser and decoder of one configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = _build(config, "audio_encoder", _ENCODERS)
        scalars = dict(config.get("vector_quantizer") or {})
        _class(scalars, "vector_quantizer", _QUANTIZERS)
        self.quantizer = GroupedScalars(scalars["num_groups"], scalars["num_levels_per_group"])
        self.decoder = _build(config, "audio_decoder", _DECODERS)
        width = self.quantizer.groups * len(scalars["num_levels_per_group"])
        takes = self.decoder.pre_conv.in_channels
        if takes != width:
            raise ValueError(f"nemo: audio_decoder takes {takes} channels, vector_quantizer gives {width}")


class NemoCodec(Codec):
    """See the module; the attributes and methods of ``vall_e.codecs.base.Codec``.

    Args:
        config: ``sample_rate``, ``samples_per_frame``, ``audio_encoder``, ``vector_quantizer`` and ``audio_decoder`` of
            ``model_config.yaml``; its other keys are about training.

    Raises:
        ValueError: parts that are not there, or are not those named in the module.
    """

    name = "nemo"
    residual = False
    padding_safe = False

    def __init__(self, config: dict[str, Any]) -> None:
        keys = ("sample_rate", "samples_per_frame", "audio_encoder", "vector_quantizer", "audio_decoder")
        missing = [key for key in keys if key not in config]
        if missing:
            raise ValueError(f"nemo: the configuration has no {missing[0]}: is it one of an audio codec?")
        self.config = {key: config[key] for key in keys}
        self.sample_rate, self.hop = int(config["sample_rate"]), int(config["samples_per_frame"])
        self.frame_rate = self.sample_rate / self.hop
        self.model = _Network(self.config).eval().requires_grad_(False)
        self.levels, self.codes = self.model.quantizer.groups, self.model.quantizer.codes
        self.least = _least_frames(self.model, self.hop)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """``wav`` float [B, 1, N] in -1..1 → codes int64 [B, L, T], T = ceil(N / hop)."""
        frames = -(-wav.shape[-1] // self.hop)
        whole = max(frames, self.least) * self.hop
        wav = F.pad(wav.to(self.device, torch.float32), (0, whole - wav.shape[-1]))
        latent = by_rows(self.model.encoder, wav, self.model.encoder.width * whole)
        return self.model.quantizer.encode(latent)[..., :frames]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """``codes`` int64 [B, l, T] with 1 <= l <= L → wav float [B, 1, T * hop]; scalars of levels left out are 0.

        The networks reflect a clip at its edges; one too short for that is followed by its last frame.
        """
        frames = codes.shape[-1]
        latent = self.model.quantizer.decode(codes.to(self.device))
        latent = F.pad(latent, (0, max(0, self.least - frames)), mode="replicate")
        wav = by_rows(self.model.decoder, latent, self.model.decoder.width * latent.shape[-1] * self.hop)
        return wav[..., : frames * self.hop]

    def stream(self, look_ahead: int | None = None) -> WaveStream:
        """A decoder for codes that come piece by piece; by default it waits for all that a frame's samples need."""
        context = math.ceil(self.model.decoder.reach)
        return WaveStream(self.decode, self.hop, Context(context, context, context), look_ahead)

    def codebooks(self) -> list[Tensor]:
        """The L code tables, float [n, D]; each level has columns of its own."""
        return self.model.quantizer.tables()

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors: all that ``load`` needs, offline."""
        write_codec(folder, {"name": self.name, "config": self.config}, self.model.state_dict())

    @classmethod
    def load(cls, config: CodecConfig, folder: Path | None, device: str = "cpu") -> NemoCodec:
        """From ``folder`` (what ``save`` wrote), else from ``config.weights``: a ``.nemo`` file, a folder with what
        ``save`` wrote, or the hub's name of a repository; without it NVIDIA's 44.1 kHz codec from the hub.

        Raises:
            FileNotFoundError: no weights; the message says what was tried.
            ValueError: weights that are not plain tensors or belong to another model.
        """
        weights = config.weights or PUBLISHED
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"{folder} is missing: run the fit_codec stage, which saves the codec there")
        source = folder or Path(weights).expanduser()
        if folder is None and not source.exists() and is_hub_id(weights):
            source = from_hub(cls.name, weights, f"{weights.split('/')[1]}.nemo")
        if folder is None and not source.exists():
            raise FileNotFoundError(f"codec.weights: {source} does not exist; name a .nemo file or a hub repository")
        if source.is_dir():
            state, description = read_saved(source, cls.name)
            codec = cls(description.get("config", {}))
        else:
            state, settings = read_nemo(source)
            codec = cls(settings)
        fill(codec.model, state, source)
        codec.model.to(device)
        return codec


def read_nemo(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of encoder and decoder under the names of this package, and the configuration, of a ``.nemo`` file.

    Nothing is unpacked to disk and nothing is unpickled but tensors. What only training needs (discriminator, losses)
    is left out.

    Raises:
        ValueError: not such a file, or one whose weights hold more than tensors.
    """
    try:
        with tarfile.open(path) as tar:
            config = yaml.safe_load(_member(tar, path, "model_config.yaml"))
            state = plain_tensors(io.BytesIO(_member(tar, path, "model_weights.ckpt")), path)
    except (tarfile.TarError, EOFError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a .nemo file: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: model_config.yaml must hold settings, found {type(config).__name__}")
    parts = ("audio_encoder.", "audio_decoder.")
    plain = plain_names({k.removeprefix("audio_"): v for k, v in state.items() if k.startswith(parts)})
    for theirs, ours in (("fb", "fb"), ("window", "hann")):
        if (filters := plain.pop(f"{_FEATURIZER}{theirs}", None)) is not None:
            plain[f"encoder.{ours}"] = filters
    return plain, config


def _member(tar: tarfile.TarFile, path: Path, name: str) -> bytes:
    found = [member for member in tar.getmembers() if member.isfile() and Path(member.name).name == name]
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} files {name}; a .nemo checkpoint has one")
    handle = tar.extractfile(found[0])
    assert handle is not None
    return handle.read()


def _class(settings: dict[str, Any], part: str, known: dict[str, type]) -> type:
    """The class that ``_target_`` names, taken out of ``settings``. Raises ValueError."""
    name = str(settings.pop("_target_", None)).rsplit(".", 1)[-1]
    if name not in known:
        raise ValueError(f"nemo: {part} is a {name}; this loader knows {', '.join(known)}")
    return known[name]


def _build(config: dict[str, Any], part: str, known: dict[str, type]) -> nn.Module:
    settings = dict(config.get(part) or {})
    kind = _class(settings, part, known)
    try:
        return kind(**settings)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"nemo: the description of {part} does not fit: {error}") from None


def _least_frames(model: nn.Module, hop: int) -> int:
    """Frames that a clip needs so that every convolution can reflect it at its edges: more steps than its padding."""
    shapes: dict[nn.Module, int] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, x: shapes.__setitem__(m, x[0].shape[-1]))
        for module in model.modules()
        if isinstance(module, nn.Conv1d)
    ]
    probe = 64
    with torch.no_grad():
        model.decoder(model.quantizer.decode(model.quantizer.encode(model.encoder(torch.zeros(1, 1, probe * hop)))))
    for hook in hooks:
        hook.remove()
    return max((conv.padding[0] + 1) * probe // steps + 1 for conv, steps in shapes.items())
