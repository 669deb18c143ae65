"""Peak of memory of decoding a minute of speech, measured in a process of its own (this module run as a script).

python -m benchmarks.decode.memory '{"config": {...}, "codes": 1024, "frames": 4500, "weights": "int8"}'
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from benchmarks.decode.bench import Bench, build, prompts
from benchmarks.decode.steps import run
from vall_e.family import ModelConfig
from vall_e.memory import give_back
from vall_e.models.formats import use_weights, weight_bytes

FRAME_RATE = 75.0
METHOD = (
    "growth of the resident set from before the model is built to its peak while it decodes, torch and its kernels "
    "loaded before by a tiny model"
)


def peak_memory_ratio(bench: Bench) -> float:
    """Peak growth of a process' memory while the reference decodes a minute of speech in its best weight format, over
    the bytes of its weights and of a cache for exactly that many positions. Target: at most 1.2.

    In a process of its own: a tiny model decodes first, so that torch's code and threads are there; then the resident
    set is noted, the reference is built, and the peak counter is set back before it decodes.
    """
    options = bench.options
    work = {
        "config": options.ref.model_dump(mode="json"),
        "codes": options.codes,
        "frames": round(options.speech_seconds * FRAME_RATE),
        "weights": options.best,
        "threads": options.threads,
    }
    script = [sys.executable, "-m", "benchmarks.decode.memory", json.dumps(work)]
    done = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    bench.details["peak_memory_ratio"] = found | {"weights_format": options.best, "method": METHOD}
    return found["peak_growth_bytes"] / (found["weights_bytes"] + found["cache_bytes"])


def _peak() -> int:
    """Highest resident set in bytes since the counter was last set back."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def _measure(work: dict) -> dict[str, int]:
    torch.set_num_threads(work["threads"])
    little = {"dim": 64, "layers": 1, "heads": 2, "kv_heads": 2, "ff_dim": 64}
    small = ModelConfig.model_validate(work["config"] | little)
    run(use_weights(build(small, work["codes"]), work["weights"]), prompts(1, work["codes"]), [8])
    gc.collect()
    give_back()  # else the reference would begin in what the tiny model left
    before = psutil.Process().memory_info().rss
    model = use_weights(build(ModelConfig.model_validate(work["config"]), work["codes"]), work["weights"])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    prompt = prompts(1, work["codes"])
    run(model, prompt, [work["frames"]])
    peak = _peak()
    positions = model.layout.length(prompt[0]) + work["frames"]
    cache = model.backbone.new_cache(1, positions, model.dtype, torch.device("meta")).bytes
    return {
        "peak_growth_bytes": peak - before,
        "weights_bytes": weight_bytes(model),
        "cache_bytes": cache,
        "frames": work["frames"],
    }


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
