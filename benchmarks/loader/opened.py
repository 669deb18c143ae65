"""What opening a mapped corpus costs a process that did nothing before.

python -m benchmarks.loader.opened FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil

from benchmarks.loader.corpus import load

if __name__ == "__main__":
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    corpus = load(Path(sys.argv[1]))
    took = time.perf_counter() - began
    grown = (psutil.Process().memory_info().rss - before) / 1e6
    print(json.dumps({"open_s": round(took, 3), "open_mb": round(grown, 1), "utterances": len(corpus.utterances)}))
