"""Profiles and presets: YAML files that override parts of ``params.yaml`` and name themselves with ``profile:``.

A profile in ``conf/`` is a whole way to run; a preset in ``conf/presets/`` is a model and the facts of its codec.
"""

from __future__ import annotations

from pathlib import Path

from vall_e.config import read_yaml


def profile_files(root: Path) -> dict[str, Path]:
    """Names and files of the profiles and presets below ``root/conf``, in order of their names."""
    found = [*(root / "conf").glob("*.yaml"), *(root / "conf/presets").glob("*.yaml")]
    return {p.stem: p for p in sorted(found, key=lambda p: p.stem) if read_yaml(p).get("profile") == p.stem}
