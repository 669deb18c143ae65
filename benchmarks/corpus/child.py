"""The encode stage's work in a process of its own, each shard noted when it is begun: python -m benchmarks.corpus.child
JSON."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from vall_e.config import parse_params
from vall_e.corpus import encode

_WORK = encode._write_shard


def noted(log: Path, *arguments: Any) -> None:
    """Work on a shard. Before it, a line of ``log`` says when (time.time()) and which."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{time.time()} {arguments[-2].name}\n")
    _WORK(*arguments)


if __name__ == "__main__":
    params, *paths, log = json.loads(sys.argv[1])
    encode._write_shard = partial(noted, Path(log))
    encode.encode(parse_params(params), *map(Path, paths), progress=False)
