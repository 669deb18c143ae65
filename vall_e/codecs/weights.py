"""Where a published codec's weights come from, and how they are read without running anybody's code.

``torch.load`` runs what a pickle says, so files are read with ``weights_only=True`` or as safetensors. Weight
normalisation, which the packages work out again at every call, is multiplied out as weights are filled in.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import remove_weight_norm

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Published:
    """One file of published weights.

    Attributes:
        url: where its authors put it.
        cache: where the codec's own package keeps it after a download.
        sha256: the first digits of its SHA-256, where its authors name them.
    """

    url: str
    cache: Path
    sha256: str = ""


def find_weights(codec: str, weights: str | None, published: Published) -> Path:
    """The file or folder with the weights of ``codec``: the one named, the cached one, or a fresh download.

    Args:
        weights: ``codec.weights`` of the configuration: a file, a folder, or None for the published weights.

    Raises:
        FileNotFoundError: nothing is reachable; the message says what was tried and what to do.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"codec.weights: {path} does not exist; name a state dict or a folder with one")
        return path
    if published.cache.is_file():
        return published.cache
    failure = None
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "TRUE", "YES", "ON"}:
        reason = "HF_HUB_OFFLINE forbids downloads"
    else:
        try:
            return _download(published)
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason, failure = f"the download failed ({error})", error
    raise FileNotFoundError(
        f"the weights of codec '{codec}' are not reachable: {published.cache} is not there and {reason}. "
        f"Fetch {published.url} on a machine that can, then put it at that path or name it in codec.weights; "
        "or use the bundled codec (codec.name: mel), which needs no download"
    ) from failure


def _download(published: Published) -> Path:
    published.cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = published.cache.with_name(f".{published.cache.name}.{os.getpid()}")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(published.url, timeout=TIMEOUT_SECONDS) as answer, temporary.open("wb") as file:
            while piece := answer.read(1 << 20):
                digest.update(piece)
                file.write(piece)
        if not digest.hexdigest().startswith(published.sha256):
            raise ValueError(f"its SHA-256 {digest.hexdigest()} does not begin with {published.sha256}")
        os.replace(temporary, published.cache)
    finally:
        temporary.unlink(missing_ok=True)
    return published.cache


def is_hub_id(name: str) -> bool:
    """``name`` reads as OWNER/REPOSITORY of the Hugging Face hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def from_hub(what: str, repository: str, file: str) -> Path:
    """One file of a repository on the Hugging Face hub, out of its cache or freshly fetched.

    Args:
        what: is loaded from it, for the error.

    Raises:
        FileNotFoundError: nothing is reachable; the message says what was tried and what to do.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, ValueError) as error:  # the hub's errors are both
        reason, failure = " ".join(str(error).split())[:200] or type(error).__name__, error
    raise FileNotFoundError(
        f"the weights of {what} are not reachable: {file} of {repository} is not in the hub's cache and cannot be "
        f"fetched ({reason}). Fetch it on a machine that can (`hf download {repository}`), and give its path instead "
        "of the name; or use the bundled codec (codec.name: mel), which needs no download"
    ) from failure


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and description of a weights file, or of a folder with one.

    A folder holds ``config.json`` and ``model.safetensors`` (or a single .pt, .pth or .th file). A file may have a
    ``config.json`` beside it only when it is called ``model.safetensors``. audiotools' files (DAC) carry their
    description themselves: ``{"state_dict": ..., "metadata": {"kwargs": ...}}``.

    Returns:
        the tensors, and the description: what ``config.json`` or the file says, else an empty dictionary.

    Raises:
        FileNotFoundError: a folder without weights.
        ValueError: not a weights file, or one that holds more than tensors and plain values.
    """
    if path.is_dir():
        path = _file_in(path)
    description: dict[str, Any] = {}
    config = path.with_name("config.json")
    if path.name == "model.safetensors" and config.is_file():
        description = read_description(config)
    if path.suffix == ".safetensors":
        try:
            return load_file(path), description
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    content = _unpickled(path, path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        kwargs = (content.get("metadata") or {}).get("kwargs")
        return content["state_dict"], {"architecture": kwargs} if kwargs else description
    return _tensors(content, path), description


def plain_tensors(file: BinaryIO, path: Path) -> dict[str, Tensor]:
    """The state dict in an open file; ``path`` names it in errors. Raises ValueError as ``read_weights`` does."""
    return _tensors(_unpickled(file, path), path)


def _unpickled(file: BinaryIO | Path, path: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a file of plain tensors, and nothing else is unpickled here: {str(error).splitlines()[0]} "
            "If you trust it, convert it once elsewhere: state = torch.load(FILE, weights_only=False), then "
            "safetensors.torch.save_file(state, 'model.safetensors')"
        ) from None


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict (a mapping of names to tensors)")
    return content


def read_saved(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and description of the codec ``name`` that :func:`write_codec` wrote into ``folder``.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it holds another codec.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: run the fit_codec stage, which saves the codec there")
    state, description = read_weights(folder)
    found = description.get("name", name)
    if found != name:
        raise ValueError(f"{folder} holds the codec {found!r}, not {name!r}: run the fit_codec stage again")
    return state, description


def _file_in(folder: Path) -> Path:
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    found = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".pt", ".pth", ".th"})
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise FileNotFoundError(f"{folder}: expected model.safetensors or one other weights file, found {names}")
    return found[0]


def read_description(path: Path) -> dict[str, Any]:
    """A codec folder's ``config.json``. Raises ValueError naming the file when it is not a JSON object."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(description, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(description).__name__}")
    return description


def fill(module: torch.nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load ``state``, weight normalisation multiplied out, strictly.

    Raises:
        ValueError: the weights belong to another model; ``source`` is named.
    """
    try:
        module.load_state_dict(multiplied_out(state))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"{source} does not fit this codec (another model or sample rate?): {first}") from None


def multiplied_out(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with ``weight`` = g v / ‖v‖ (1602.07868, equation 2; a norm for each first index, as torch's default)
    in place of ``weight_g`` and ``weight_v``, or of ``parametrizations.weight.original0`` and ``original1``.

    Pairs that do not belong together stay as they are, to be refused as what no layer knows.
    """
    plain = {re.sub(r"parametrizations\.weight\.original([01])$", _old_name, name): state[name] for name in state}
    for stem in [name.removesuffix("_g") for name in plain if name.endswith("weight_g")]:
        g, v = plain[f"{stem}_g"], plain.get(f"{stem}_v")
        if v is not None and g.shape == (*v.shape[:1], *[1] * (v.dim() - 1)):  # torch itself does not look
            plain[stem] = torch._weight_norm(v, g, 0)
            del plain[f"{stem}_g"], plain[f"{stem}_v"]
    return plain


def _old_name(match: re.Match[str]) -> str:
    return f"weight_{'gv'[int(match[1])]}"


def without_weight_norm(module: torch.nn.Module) -> torch.nn.Module:
    """``module`` itself, every layer of which keeps the weight that its weight normalisation makes now."""
    for layer in module.modules():
        if hasattr(layer, "weight_g"):
            remove_weight_norm(layer)
    return module


def write_codec(folder: Path, description: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
