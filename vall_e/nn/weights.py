"""Weights on disk and in modules: safetensors only, and errors that name the file, the tensor and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

PICKLES = (".bin", ".pt", ".pth", ".th", ".ckpt", ".pkl")
NAMED = 4  # misfits that an error names; there may be hundreds


class WeightsError(ValueError):
    """Weights that cannot be read, or that belong to another model."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: it is not there.
        WeightsError: it is damaged, or the folder has pickled weights only, which run code when they are read.
    """
    if not path.is_file():
        refuse_pickles(path.parent)
        raise FileNotFoundError(f"{path} is missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}): copy or write it again") from None


def refuse_pickles(folder: Path) -> None:
    """Raises WeightsError where ``folder`` holds pickled weights."""
    found = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
    if found:
        raise WeightsError(
            f"{folder} holds pickled weights ({', '.join(found[:NAMED])}), which run code when they are read: "
            "if you trust them, convert them once elsewhere with safetensors.torch.save_file or with transformers' "
            "save_pretrained(..., safe_serialization=True)"
        )


def misfits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``found`` from being ``wanted``, a line a tensor; empty where names and shapes are the same."""
    out = [f"{name} is missing" for name in wanted if name not in found]
    out += [f"{name} is unknown" for name in found if name not in wanted]
    for name in wanted:
        if name in found and found[name].shape != wanted[name].shape:
            out.append(f"{name} is {_shape(found[name])} and {_shape(wanted[name])} is needed")
    return out


def check(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str | Path, remedy: str) -> None:
    """Raises WeightsError naming ``source``, the first tensors that do not fit, and the remedy."""
    wrong = misfits(wanted, found)
    if wrong:
        more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise WeightsError(f"{source} does not fit the model: {'; '.join(wrong[:NAMED])}{more}. {remedy}")


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, remedy: str, assign: bool = False
) -> None:
    """Load ``tensors`` into ``module``, all of them and nothing else.

    Args:
        source: where they are from, for the error.
        remedy: a sentence that says what to do about tensors that do not fit.
        assign: the module takes the tensors themselves, with their dtype: for a module made on the meta device.

    Raises:
        WeightsError: names or shapes differ.
    """
    check(module.state_dict(), tensors, source, remedy)
    module.load_state_dict(tensors, assign=assign)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
