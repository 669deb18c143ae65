"""Checkpoints in the layout of Hugging Face's ``transformers``: a folder of config.json and safetensors, in and out.

The same numbers under other names: nothing is transposed or rounded, so a round trip is exact bit for bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from vall_e.family import BACKBONES, ModelConfig, RopeConfig
from vall_e.nn.weights import WeightsError, read_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DERIVED = "rotary_emb.inv_freq"  # older checkpoints store what follows from the configuration

SIZES = {  # ours → theirs
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ff_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
EXPERTS = {  # ours in the section experts → theirs
    "count": "num_local_experts",
    "active": "num_experts_per_tok",
    "balance_weight": "router_aux_loss_coef",
}
ROPE_SCALING = {"default": "none", "linear": "linear", "dynamic": "dynamic"}  # theirs → ours
BUILT = {  # what their configuration may say besides, and what is built here
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
}


@dataclass(frozen=True)
class Family:
    """An architecture that both sides have.

    Attributes:
        architecture: the class that ``transformers`` loads.
        once: names of tensors, ours below the backbone → theirs below ``model.``.
        layer: the same for each layer, which ``{n}`` counts.
        expert: the same for each expert of each layer, which ``{e}`` counts.
    """

    architecture: str
    once: Mapping[str, str]
    layer: Mapping[str, str]
    expert: Mapping[str, str] = field(default_factory=dict)


_EXPERT = "layers.{n}.block_sparse_moe.experts.{e}"
_ATTENTION = {
    "blocks.{n}.attention_norm.weight": "layers.{n}.input_layernorm.weight",
    "blocks.{n}.feedforward_norm.weight": "layers.{n}.post_attention_layernorm.weight",
} | {f"blocks.{{n}}.attention.{name}.weight": f"layers.{{n}}.self_attn.{name}_proj.weight" for name in "qkvo"}
FAMILIES = {  # by the name of our backbone, which is their model_type
    "llama": Family(
        "LlamaForCausalLM",
        {"norm.weight": "norm.weight"},
        _ATTENTION
        | {
            f"blocks.{{n}}.feedforward.{name}.weight": f"layers.{{n}}.mlp.{name}_proj.weight"
            for name in ("gate", "up", "down")
        },
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        {"norm.weight": "norm.weight"},
        _ATTENTION | {"blocks.{n}.feedforward.router.weight": "layers.{n}.block_sparse_moe.gate.weight"},
        {
            f"blocks.{{n}}.feedforward.experts.{{e}}.{ours}.weight": f"{_EXPERT}.{theirs}.weight"
            for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
        },
    ),
}
KNOWN = FAMILIES.keys() & BACKBONES.keys()


def find(path: str | Path) -> Path:
    """The local folder of a checkpoint: ``path`` itself, or the snapshot of the hub's repository of that name.

    Raises:
        FileNotFoundError: neither is there, or the hub is out of reach.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(str(path)):
        raise FileNotFoundError(f"{path} is neither a folder nor the name of a repository (owner/name) on the hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"{path} is no folder here, and as a repository it is out of reach ({reason}): "
            "download it where there is a network and name the folder"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Their configuration, with what its file leaves out at the defaults of ``transformers``.

    Raises:
        FileNotFoundError: no config.json.
        WeightsError: it is not readable, or of an architecture that is not built here.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a checkpoint is a folder of config.json and safetensors")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind = raw.get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise WeightsError(f"{path} is not a configuration in JSON: {error}") from None
    if kind not in KNOWN:
        raise WeightsError(f"{path}: model_type {kind!r} is not built here, only {', '.join(sorted(KNOWN))}")
    spoken = folder / "generation_config.json"
    if spoken.is_file():  # its end tokens win, as in transformers' own generation
        ends = json.loads(spoken.read_text(encoding="utf-8")).get("eos_token_id")
        raw |= {} if ends is None else {"eos_token_id": ends}
    rope = raw.pop("rope_parameters", None)  # where transformers 5 keeps both of these
    if rope is not None:
        raw |= {"rope_theta": rope["rope_theta"], "rope_scaling": rope}
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**raw).to_dict()
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is not a configuration of {kind}: {error}") from None


def our_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """Their configuration, as ``read_config`` gives it, as the configuration of a backbone.

    Raises:
        WeightsError: it asks for something that is not built here.
    """
    kind = theirs["model_type"]
    for key, built in BUILT.items():
        if theirs.get(key, built) != built:
            raise WeightsError(f"{kind} with {key} = {theirs[key]!r} is not built here, only with {built!r}")
    width = theirs["hidden_size"] // theirs["num_attention_heads"]
    if (theirs.get("head_dim") or width) != width:
        raise WeightsError(f"{kind} with heads of width {theirs['head_dim']}: here it is hidden_size / heads, {width}")
    scaling = theirs.get("rope_scaling") or {}
    stretch = scaling.get("rope_type", "default")
    if stretch not in ROPE_SCALING:
        raise WeightsError(f"rotary positions of type {stretch!r} are not built here, only {', '.join(ROPE_SCALING)}")
    try:
        rope = RopeConfig(
            base=theirs["rope_theta"],
            scaling=ROPE_SCALING[stretch],
            factor=scaling.get("factor", 1.0),
            trained_length=theirs["max_position_embeddings"],
        )
        sizes: dict[str, Any] = {ours: theirs[name] for ours, name in SIZES.items()}
        if FAMILIES[kind].expert:
            sizes["experts"] = {ours: theirs[name] for ours, name in EXPERTS.items()}
        return ModelConfig(backbone=kind, rope=rope, **sizes)
    except ValidationError as error:
        raise WeightsError(f"{kind} of these sizes is not built here: {error.errors()[0]['msg']}") from None


def their_config(config: ModelConfig, **more: Any) -> dict[str, Any]:
    """The configuration of a backbone as theirs; ``more`` holds what a language model has besides."""
    rope, family = config.rope, FAMILIES[config.backbone]
    experts = {theirs: getattr(config.experts, ours) for ours, theirs in EXPERTS.items()} if family.expert else {}
    stretch = next(theirs for theirs, ours in ROPE_SCALING.items() if ours == rope.scaling)
    return {
        "architectures": [family.architecture],
        "model_type": config.backbone,
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        **experts,
        "rope_theta": rope.base,
        "rope_scaling": None if stretch == "default" else {"rope_type": stretch, "factor": rope.factor},
        "max_position_embeddings": rope.trained_length,
        **more,
    }


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """Our names below the backbone → theirs below ``model.``, of every tensor of this configuration."""
    family = FAMILIES[config.backbone]
    names = dict(family.once)
    for n in range(config.layers):
        names |= {ours.format(n=n): theirs.format(n=n) for ours, theirs in family.layer.items()}
        for e in range(config.experts.count if family.expert else 0):
            names |= {ours.format(n=n, e=e): theirs.format(n=n, e=e) for ours, theirs in family.expert.items()}
    return names


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder with one file or with shards and an index, under their names without ``model.``.

    Raises:
        FileNotFoundError: no weights.
        WeightsError: damaged or pickled weights.
    """
    files = [WEIGHTS]
    if (folder / INDEX).is_file():
        try:
            files = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise WeightsError(f"{folder / INDEX} is not an index of shards: {error!r}") from None
        if any(Path(file).name != file for file in files):
            raise WeightsError(f"{folder / INDEX} names files outside of its folder")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_tensors(folder / file)
    return {name.removeprefix("model."): t for name, t in tensors.items() if not name.endswith(_DERIVED)}


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a folder that ``transformers`` loads; ``tensors`` under their names without ``model.``."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    named = {name if name == HEAD else f"model.{name}": t.detach().cpu() for name, t in tensors.items()}
    save_torch_state_dict(named, folder, max_shard_size=SHARD_BYTES)
    text = json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def is_checkpoint(folder: Path) -> bool:
    """The folder's config.json is one of theirs, readable here or not."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and "model_type" in raw
