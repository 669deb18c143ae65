"""A trained voice or a text checkpoint with fewer key/value heads, as a new folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from vall_e.backbones import huggingface
from vall_e.models.checkpoint import VoiceConfig, VoiceError, load_config, load_weights, write_voice
from vall_e.models.text import TextModel
from vall_e.nn.convert import with_kv_heads
from vall_e.nn.weights import check

METHOD = "mean pooling of key and value heads (2305.13245, section 2.1)"
REMEDY = "This backbone keeps its keys elsewhere and cannot be converted"


def convert(folder: Path, out: Path, kv_heads: int) -> dict[str, Any]:
    """Write ``folder``, a voice or a checkpoint of ``transformers``, into ``out`` with ``kv_heads`` key/value heads.

    What is not weights or configuration is copied; ``out`` appears whole or not at all.

    Returns:
        ``kv_heads`` and ``was``.

    Raises:
        FileExistsError: ``out`` is there already.
        FileNotFoundError: a file of ``folder`` is missing.
        ValueError: it cannot be read, has no more heads than asked for, or they cannot be pooled evenly.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: name a folder that is not")
    work = _checkpoint if huggingface.is_checkpoint(folder) else _voice
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        was = work(folder, fresh, kv_heads)
        for path in folder.iterdir():
            if not (fresh / path.name).exists() and path.name != "run.json" and ".safetensors" not in path.name:
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, fresh / path.name)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return {"kv_heads": kv_heads, "was": was}


def _voice(folder: Path, fresh: Path, kv_heads: int) -> int:
    config = load_config(folder)
    was = _fewer(config.model.kv_heads, kv_heads)
    lineage = config.lineage | {"converted": {"kv_heads": [was, kv_heads], "by": METHOD}}
    raw = config.model_dump(mode="json")
    raw |= {"model": raw["model"] | {"kv_heads": kv_heads}, "lineage": lineage}
    config = VoiceConfig.model_validate_json(json.dumps(raw))
    weights = with_kv_heads(load_weights(folder, config), was, kv_heads)
    with torch.device("meta"):
        check(config.build().state_dict(), weights, folder, REMEDY)
    write_voice(fresh, weights, config)
    return was


def _checkpoint(folder: Path, fresh: Path, kv_heads: int) -> int:
    model = TextModel.load(folder)
    was = _fewer(model.config.kv_heads, kv_heads)
    key = huggingface.SIZES["kv_heads"]
    theirs = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {key: kv_heads}
    names = model.names()
    pooled = with_kv_heads(model.state_dict(), was, kv_heads)
    check(TextModel.empty(huggingface.read_config(folder) | {key: kv_heads}).state_dict(), pooled, folder, REMEDY)
    huggingface.write_checkpoint(fresh, theirs, {names[name]: tensor for name, tensor in pooled.items()})
    return was


def _fewer(was: int, wanted: int) -> int:
    if not 1 <= wanted < was:
        raise VoiceError(f"it has {was} key/value heads: fewer can be made of them, not {wanted}")
    return was
