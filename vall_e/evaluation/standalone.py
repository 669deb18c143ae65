"""A page that is one file: pictures, sounds and tables are in it as ``data:`` URIs (RFC 2397).

MLflow shows an artifact without the files beside it, and a page that is passed on has none.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Template

LIMIT = 30 << 20  # characters of a page that browsers and MLflow still show at once
SOUND = ".wav"
KINDS = {SOUND: "audio/wav", ".svg": "image/svg+xml", ".csv": "text/csv", ".md": "text/markdown"}


def render_alone(template: Template, context: Mapping[str, Any], folder: Path) -> str:
    """The page of ``folder`` without the folder. One that is longer than ``LIMIT`` is made anew without its sounds.

    Args:
        template: takes ``link(path)``, what the page names a file by, None for one that is left out, ``alone``, whether
            there is no folder, and ``left_out_mb``, what the page would be with its sounds, None where it has them.
        context: all else that the template takes.
    """
    page = template.render(context, link=lambda path: data_uri(folder / path), alone=True, left_out_mb=None)
    if len(page) <= LIMIT:
        return page

    def link(path: str) -> str | None:
        return None if path.endswith(SOUND) else data_uri(folder / path)

    return template.render(context, link=link, alone=True, left_out_mb=len(page) / (1 << 20))


def data_uri(path: Path) -> str:
    """``data:image/svg+xml;base64,...`` of a file."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
