"""A voice on disk: ``model.safetensors``, a ``config.json`` that describes it fully, its tokenizer and its codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from vall_e.config import CodecConfig, EncodeConfig, SamplingConfig
from vall_e.family import LoraConfig, ModelConfig
from vall_e.fields import PositiveFloat, PositiveInt, Section
from vall_e.models.vall_e import VallE
from vall_e.nn.attention import use_attention
from vall_e.nn.bitlinear import use_linear
from vall_e.nn.lora import adapter_state, load_adapter_state


class VoiceError(ValueError):
    """A folder is not a voice that this version can load."""


class VoiceConfig(Section):
    """All that is needed to build and use a trained voice.

    ``seconds_per_phone`` is the mean of the training texts; ``prompt_seconds`` the longest prompt seen in training.
    """

    version: Literal[1] = 1
    model: ModelConfig
    levels: PositiveInt
    codes: PositiveInt
    phones: PositiveInt
    codec: CodecConfig
    encode: EncodeConfig
    sampling: SamplingConfig
    language: str
    with_stress: bool
    words_apart: bool = False
    seconds_per_phone: PositiveFloat
    prompt_seconds: PositiveFloat
    lineage: dict[str, Any] = {}

    def build(self) -> VallE:
        """The model with fresh weights."""
        return VallE(self.model, self.levels, self.codes, self.phones)


def save_model(folder: Path, model: VallE, config: VoiceConfig) -> None:
    """Write weights and configuration into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    text = json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def load_config(folder: str | Path) -> VoiceConfig:
    """Read a voice's config.json. Raises FileNotFoundError or VoiceError naming the file and what is wrong."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: --model takes the folder that the train stage wrote (models/voice)"
        )
    try:
        return VoiceConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VoiceError(f"{path} does not describe a voice of this version: {where}: {first['msg']}") from None


def load_model(
    folder: str | Path, device: str | torch.device = "cpu", attention: str | None = None
) -> tuple[VallE, VoiceConfig]:
    """The model in evaluation mode, and its configuration.

    Args:
        attention: a kernel (see ``vall_e.nn.backends``) instead of the one that the voice was trained with.

    Raises:
        FileNotFoundError: a file of the voice is missing.
        VoiceError: damaged weights, or weights that do not fit the configuration.
    """
    folder = Path(folder)
    config = load_config(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the folder is not a whole voice, run the train stage again")
    model = config.build()
    if attention is not None:
        use_attention(model, attention)
    try:
        weights = load_file(path)
        if any(name.endswith(".packed") for name in weights):
            use_linear(model, "packed")
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise VoiceError(f"{path} does not hold the weights that config.json describes: {error}") from None
    return model.to(device).eval(), config


def save_adapters(path: Path, model: VallE) -> None:
    """Write the adapters of ``model`` alone, with the configuration that they need, into one file."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_state(model.backbone).items()}
    save_file(state, path, metadata={"lora": model.config.lora.model_dump_json()})


def load_adapters(path: Path, model: VallE) -> None:
    """Put what ``save_adapters`` wrote on ``model``, the one without adapters that they were trained on.

    Raises:
        VoiceError: a file without adapters, or adapters of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            lora = (file.metadata() or {}).get("lora")
        if lora is None:
            raise ValueError("save_adapters did not write it")
        model.adapt(LoraConfig.model_validate_json(lora))
        load_adapter_state(model.backbone, load_file(path))
    except (SafetensorError, ValueError) as error:
        raise VoiceError(f"{path} does not hold adapters of this model: {error}") from None
