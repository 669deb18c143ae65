"""A voice on disk: ``model.safetensors``, a ``config.json`` that describes it fully, its tokenizer and its codec."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vall_e.decoding import SamplingConfig
from vall_e.family import LoraConfig, ModelConfig
from vall_e.fields import PositiveFloat, PositiveInt, Section
from vall_e.models.vall_e import VallE
from vall_e.nn.attention import use_attention
from vall_e.nn.bitlinear import use_linear
from vall_e.nn.lora import adapter_state, load_adapter_state
from vall_e.nn.weights import WeightsError, fill, read_tensors
from vall_e.preparation import CodecConfig, EncodeConfig

VERSION = 6
WHOLE = "config.json and model.safetensors must come from one training: copy the whole folder, or run the train stage"


class VoiceError(ValueError):
    """A folder is not a voice that this version can load."""


class VoiceConfig(Section):
    """All that is needed to build and use a trained voice.

    ``residual`` says whether the codec's levels have an order, as those of all voices do that do not say it;
    ``seconds_per_phone`` is the mean of the training texts; ``prompt_seconds`` the longest prompt seen in training,
    ``response_phones`` the longest text (voices that do not say it were trained up to their sampling's
    ``max_seconds``).
    """

    version: Literal[6] = VERSION
    model: ModelConfig
    levels: PositiveInt
    codes: PositiveInt
    residual: bool = True
    phones: PositiveInt
    codec: CodecConfig
    encode: EncodeConfig
    sampling: SamplingConfig
    language: str
    with_stress: bool
    words_apart: bool = False
    seconds_per_phone: PositiveFloat
    prompt_seconds: PositiveFloat
    response_phones: PositiveInt | None = None
    lineage: dict[str, Any] = {}

    @property
    def longest_text(self) -> int:
        """Phones that may be spoken at once."""
        return self.response_phones or max(1, int(self.sampling.max_seconds / self.seconds_per_phone))

    def build(self) -> VallE:
        """The model with fresh weights."""
        return VallE(self.model, self.levels, self.codes, self.phones, residual=self.residual)


def _rope_section(raw: dict[str, Any]) -> dict[str, Any]:
    """``model.rope_base`` became ``model.rope.base``."""
    model = dict(raw.get("model") or {})
    if "rope_base" in model:
        model["rope"] = {"base": model.pop("rope_base")}
    return raw | {"model": model}


def _named_languages(raw: dict[str, Any]) -> dict[str, Any]:
    """``model.languages`` was a number of tokens that nothing set."""
    model = dict(raw.get("model") or {})
    count = model.pop("languages", 1)
    if isinstance(count, int) and count > 1:
        model["languages"] = [f"unnamed-{index}" for index in range(count)]
    return raw | {"model": model}


def _passes_apart(raw: dict[str, Any]) -> dict[str, Any]:
    """The settings of the autoregressive pass stood beside those of all passes."""
    sampling = dict(raw.get("sampling") or {})
    flat = ("temperature", "top_k", "top_p", "repetition_penalty", "repetition_window")
    ar = {name: sampling.pop(name) for name in flat if name in sampling}
    nar = {"temperature": sampling.pop("nar_temperature")} if "nar_temperature" in sampling else {}
    return raw | {"sampling": sampling | {"ar": ar, "nar": nar}}


def _without_workers(raw: dict[str, Any]) -> dict[str, Any]:
    """The number of worker processes stood among the settings of encoding."""
    return raw | {"encode": {key: value for key, value in (raw.get("encode") or {}).items() if key != "workers"}}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {  # version → the next one's form
    1: _rope_section,
    2: _named_languages,
    3: _passes_apart,
    4: _without_workers,
    5: lambda raw: raw,  # the alignment head did not read phones: see load_weights
}


def save_model(folder: Path, model: VallE, config: VoiceConfig) -> None:
    """Write weights and configuration into ``folder``."""
    write_voice(folder, model.state_dict(), config)


def write_voice(folder: Path, weights: dict[str, Tensor], config: VoiceConfig) -> None:
    """Write a state dict and its configuration into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, folder / "model.safetensors")
    text = json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def load_config(folder: str | Path) -> VoiceConfig:
    """Read a voice's config.json, of this version or an older one.

    Raises:
        FileNotFoundError: it is not there.
        VoiceError: naming the file, the key and what is wrong with it.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: --model takes the folder that the train stage wrote (models/voice)"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return VoiceConfig.model_validate_json(json.dumps(_migrated(raw)))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise VoiceError(f"{path} is not readable JSON: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        unknown = "unknown key: remove it, or use the version of this program that wrote it"
        reason = unknown if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise VoiceError(f"{path} does not describe a voice of this version: {where}: {reason}") from None
    except VoiceError as error:
        raise VoiceError(f"{path} {error}") from None


def _migrated(raw: Any) -> dict[str, Any]:
    version = raw.get("version") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise VoiceError('is no voice: it has no "version"')
    if version > VERSION:
        raise VoiceError(f"is of version {version}, and this program reads up to {VERSION}: use a newer one")
    while version in MIGRATIONS:
        raw, version = MIGRATIONS[version](raw), version + 1
    return raw | {"version": version}


def load_weights(folder: str | Path, config: VoiceConfig) -> dict[str, Tensor]:
    """A voice's tensors, with what voices of older versions lack. Raises FileNotFoundError and VoiceError as
    ``load_model`` does."""
    path = Path(folder) / "model.safetensors"
    try:
        weights = read_tensors(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing: the folder is not a whole voice, run the train stage again"
        ) from None
    except WeightsError as error:
        raise VoiceError(str(error)) from None
    if config.model.alignment:
        weights.setdefault("alignment.phone.weight", torch.zeros(config.phones, config.model.dim))
    return weights


def load_model(
    folder: str | Path, device: str | torch.device = "cpu", attention: str | None = None
) -> tuple[VallE, VoiceConfig]:
    """The model in evaluation mode, and its configuration.

    Args:
        attention: a kernel (see ``vall_e.nn.backends``) instead of the one that the voice was trained with.

    Raises:
        FileNotFoundError: a file of the voice is missing.
        VoiceError: damaged or pickled weights, or weights that do not fit the configuration.
    """
    config = load_config(folder)
    weights = load_weights(folder, config)
    model = config.build()
    if attention is not None:
        use_attention(model, attention)
    try:
        if any(name.endswith(".packed") for name in weights):
            use_linear(model, "packed")
        fill(model, weights, Path(folder) / "model.safetensors", WHOLE)
    except WeightsError as error:
        raise VoiceError(str(error)) from None
    return model.to(device).eval(), config


def same_codec(folder: Path, codec: Path) -> bool:
    """Whether the voice in ``folder`` speaks through the codec saved in ``codec``: the same weights, byte by byte."""
    name = "model.safetensors"
    return filecmp.cmp(folder / "codec" / name, codec / name, shallow=False)


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
        load_adapter_state(model.backbone, read_tensors(path))
    except (SafetensorError, WeightsError, ValueError) as error:
        raise VoiceError(f"{path} does not hold adapters of this model: {error}") from None
