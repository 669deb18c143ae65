"""The encode stage's work in a process of its own: python -m benchmarks.corpus.child JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vall_e.config import parse_params
from vall_e.corpus.encode import encode

if __name__ == "__main__":
    params, *paths = json.loads(sys.argv[1])
    encode(parse_params(params), *map(Path, paths), progress=False)
