"""What all commands share: how wrong usage is told, which voice is meant, how to sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vall_e.config import SamplingConfig

MODELS = Path("models")


class UsageError(Exception):
    """The command cannot be carried out as it was given."""


def voice_folder(given: Path | None) -> Path:
    """The folder of a trained voice: ``given``, or the newest below models/. Raises UsageError."""
    from vall_e.jobs import is_model, newest_model

    if given is None:
        folder = newest_model(MODELS)
        if folder is None:
            raise UsageError(f"no trained voice below {MODELS}/: train one with `make demo`, or name one with --model")
        return folder
    if not is_model(given):
        raise UsageError(f"{given} is no trained voice (model.safetensors, config.json and tokenizer.json)")
    return given


def sampling_of(given: dict[str, Any]) -> SamplingConfig:
    """The settings in ``given``, the others at their defaults. Raises UsageError naming the option that is wrong."""
    from pydantic import ValidationError

    from vall_e.config import SamplingConfig

    try:
        return SamplingConfig(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{str(first['loc'][0]).replace('_', '-')} {first['input']}: {first['msg']}") from None
