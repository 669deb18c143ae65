"""Where the espeak-ng library and its data are, both out of the ``espeakng-loader`` wheel, and what it speaks."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

# espeak-ng 1.52 keeps the data path in a buffer of 160 bytes and falls back to a path of its build
# machine, without an error, where the buffer is too small.
_LONGEST_PATH = 150


def library() -> str:
    """Path of the shared library."""
    import espeakng_loader

    return espeakng_loader.get_library_path()


@cache
def data_path() -> str:
    """Path of ``espeak-ng-data``, short enough for the library.

    In a virtual environment far down the tree the data are copied to the temporary folder for the life
    of the process (a link would not do: phonemizer resolves it).
    """
    import espeakng_loader

    original = espeakng_loader.get_data_path()
    if len(original.encode()) <= _LONGEST_PATH:
        return original
    folder = tempfile.mkdtemp(prefix="espeak")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(shutil.copytree(original, Path(folder).resolve() / "espeak-ng-data"))


@cache
def languages() -> frozenset[str]:
    """All that espeak-ng speaks, by its own names: ``en-us``, ``de``, ``cmn``."""
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(library())
    EspeakWrapper.set_data_path(data_path())
    return frozenset(EspeakBackend.supported_languages())
