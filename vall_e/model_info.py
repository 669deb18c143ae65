"""What there is to know about a model without running it: a trained voice, a text checkpoint, or a profile's model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vall_e.backbones import huggingface
from vall_e.backbones.base import Backbone
from vall_e.config import load_params
from vall_e.models.checkpoint import load_config
from vall_e.models.size import cache_size, parameters, weight_bytes
from vall_e.models.text import TextModel
from vall_e.models.vall_e import VallE
from vall_e.profiles import profile_files
from vall_e.training.plan import CODEC_FACTS, PHONES
from vall_e.usage import voice_folder


def facts(target: str | None, root: Path = Path(".")) -> dict[str, Any]:
    """Sizes, capabilities and configuration of ``target``.

    Args:
        target: a folder, the name of a profile or preset below ``root/conf``, or None for the newest voice.

    Returns:
        ``folder`` or ``preset``; ``parameters`` and ``parts``; ``weight_bytes`` by precision; ``cache``: float32 bytes
        a position, a second of speech (where positions are frames), and fixed; ``capabilities``; the configuration.

    Raises:
        FileNotFoundError: a file of a folder is missing, or there is nothing of that name.
        ValueError: it cannot be read.
        UsageError: a folder that is neither a voice nor a checkpoint.
    """
    profiles = profile_files(root)
    if target in profiles:
        return _of_profile(target, root, profiles[target])
    if target is not None and not Path(target).is_dir():
        raise FileNotFoundError(f"no such folder, and of profiles there are {', '.join(profiles) or 'none here'}")
    if target is not None and huggingface.is_checkpoint(Path(target)):
        return _of_checkpoint(Path(target))
    return _of_voice(voice_folder(None if target is None else Path(target)))


def _of_profile(name: str, root: Path, file: Path) -> dict[str, Any]:
    params = load_params(root / "params.yaml", file)
    levels, codes, rate = CODEC_FACTS[params.codec.name](params.codec)
    with torch.device("meta"):
        model = VallE(params.model, levels, codes, PHONES)
    codec = {"name": params.codec.name, "levels": levels, "codes": codes, "frame_rate": rate}
    config = {"codec": codec, "phones": PHONES, "model": params.model.model_dump(mode="json")}
    return {"preset": name, **_size(model, model.backbone, rate), **config}


def _of_checkpoint(folder: Path) -> dict[str, Any]:
    model = TextModel.empty(huggingface.read_config(folder))
    config = {"vocabulary": model.embedding.num_embeddings, "model": model.config.model_dump(mode="json")}
    return {"folder": str(folder), **_size(model, model.backbone, None), **config}


def _of_voice(folder: Path) -> dict[str, Any]:
    config = load_config(folder)
    with torch.device("meta"):
        model = config.build()
    *_, rate = CODEC_FACTS[config.codec.name](config.codec)
    megabytes = round((folder / "model.safetensors").stat().st_size / 1e6, 2)
    size = {"folder": str(folder), "megabytes": megabytes, **_size(model, model.backbone, rate)}
    return size | config.model_dump(mode="json")


def _size(model: nn.Module, backbone: Backbone, frame_rate: float | None) -> dict[str, Any]:
    parts, cache = parameters(model), cache_size(backbone)
    sizes = {"bytes_per_position": round(cache.per_position), "bytes_fixed": cache.fixed}
    if frame_rate is not None:
        sizes["bytes_per_second"] = round(cache.per_position * frame_rate)
    return {
        "parameters": sum(parts.values()),
        "parts": parts,
        "weight_bytes": weight_bytes(model),
        "cache": sizes,
        "capabilities": asdict(backbone.capabilities),
    }


def report(found: dict[str, Any]) -> str:
    """``facts`` as lines of text."""
    left = dict(found)
    name = left.pop("folder", None) or left.pop("preset")
    cache, able = left.pop("cache"), [key for key, value in left.pop("capabilities").items() if value is True]
    lines = [f"{name}: {left.pop('parameters'):,} parameters"]
    lines += [f"  {part}: {count:,} parameters" for part, count in left.pop("parts").items()]
    lines += [f"  weights in {kind}: {size / 1e6:,.2f} MB" for kind, size in left.pop("weight_bytes").items()]
    lines += [f"  cache in fp32, {key.replace('_', ' ')}: {size:,}" for key, size in cache.items()]
    lines += [f"  the backbone can do: {', '.join(able) or 'causal steps only'}"]
    return "\n".join([*lines, *_settings(left, "")])


def _settings(values: dict[str, Any], prefix: str) -> list[str]:
    out = []
    for key, value in values.items():
        if isinstance(value, dict):
            out += _settings(value, f"{prefix}{key}.")
        else:
            out.append(f"  {prefix}{key} = {json.dumps(value, ensure_ascii=False)}")
    return out
