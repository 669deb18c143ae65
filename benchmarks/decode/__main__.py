"""Decoding, measured: one JSON object on stdout, progress and targets on stderr.

    python -m benchmarks.decode --out /tmp/decode                # everything, and its curves as decode.png
    python -m benchmarks.decode --out /tmp/decode --resume       # goes on with the figures that are not there yet
    python -m benchmarks.decode --only forwards,yoco_kv_share

What a figure is and how it is measured stands at the function of its name; ``details`` holds what else was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from benchmarks.decode import batches, memory, plots, speculation, speed, streaming
from benchmarks.decode.bench import TINY, Bench, Options, preset_sizes, sized
from vall_e.decoding import FORMATS

FIGURES: dict[str, Callable[[Bench], Any]] = {
    "cached_over_uncached": speed.cached_over_uncached,
    "over_hf_generate": speed.over_hf_generate,
    "bandwidth_share": speed.bandwidth_share,
    "per_token_3000_over_75": speed.per_token_3000_over_75,
    "yoco_kv_share": speed.yoco_kv_share,
    "batch8_over_single": batches.batch8_over_single,
    "finished_rows_overhead": batches.finished_rows_overhead,
    "forwards": batches.forwards,
    "speculative": speculation.speculative,
    "first_audio_s": streaming.first_audio_s,
    "join_ratio": streaming.join_ratio,
    "peak_memory_ratio": memory.peak_memory_ratio,
}
TARGETS: dict[str, tuple[str, float]] = {  # what each figure is to be, as the defaults measure it
    "cached_over_uncached": (">=", 20.0),
    "over_hf_generate.tiny_b1": (">=", 2.0),
    "over_hf_generate.tiny_b8": (">=", 2.0),
    "over_hf_generate.ref_fp32": (">=", 1.05),
    "over_hf_generate.ref_best": (">=", 1.8),
    "bandwidth_share": (">=", 0.7),
    "per_token_3000_over_75.llama": ("<=", 1.5),
    "per_token_3000_over_75.yoco": ("<=", 1.2),
    "yoco_kv_share": ("<=", 1 / 6),
    "batch8_over_single.tiny": (">=", 3.0),
    "batch8_over_single.ref_best": (">=", 3.0),
    "finished_rows_overhead": ("<=", 1.2),
    "forwards.nar": ("<=", batches.LEVELS - 1),
    "forwards.demask": ("<=", batches.DEMASK_STEPS),
    "speculative.low": (">=", 0.95),
    "speculative.high": (">=", 1.3),
    "first_audio_s": ("<=", 0.5),
    "join_ratio": ("<=", 1.0),
    "peak_memory_ratio": ("<=", 1.2),
}


def names(text: str) -> list[str]:
    """Keys in the order of the report, from a list with commas."""
    wanted = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := wanted - FIGURES.keys():
        raise argparse.ArgumentTypeError(f"no figure {', '.join(sorted(unknown))}: take {', '.join(FIGURES)}")
    return [name for name in FIGURES if name in wanted]


def size(text: str) -> tuple[str, int]:
    """``KEY=VALUE`` of a model's size."""
    name, _, value = text.partition("=")
    if name not in TINY or not value.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write KEY=NUMBER with a key of {', '.join(TINY)}")
    return name, int(value)


def parser() -> argparse.ArgumentParser:
    default = Options.__dataclass_fields__
    out = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.split("\n")[0])
    out.add_argument("--only", type=names, default=list(FIGURES), metavar="KEY,...", help=f"of {', '.join(FIGURES)}")
    out.add_argument("--out", type=Path, metavar="DIR", help="write decode.json and the curves, decode.png, there")
    out.add_argument("--resume", action="store_true", help="keep the figures that are in DIR/decode.json")
    out.add_argument("--voice", type=Path, metavar="DIR", help="a trained voice, for quality and streaming")
    out.add_argument("--text", default=default["text"].default, help="what that voice says (default: %(default)s)")
    out.add_argument("--best", choices=FORMATS, default=FORMATS[-1], help="weights of ref_best (default: %(default)s)")
    for name, what in (("tiny", "the tiny model"), ("ref", "the reference and YOCO")):
        out.add_argument(f"--{name}", type=size, nargs="+", default=[], metavar="KEY=N", help=f"other sizes of {what}")
    out.add_argument("--past", type=int, nargs="+", default=default["past"].default, metavar="FRAMES", help="of a step")
    for name, what in (
        ("codes", "of the one level"),
        ("frames", "decoded with and without a cache"),
        ("tiny_tokens", "decoded by the tiny model"),
        ("ref_tokens", "decoded by the reference"),
        ("pairs", "interleaved pairs of each comparison"),
        ("steps", "of the engine that are timed as one"),
        ("bandwidth_mb", "megabytes that are read to measure the bandwidth"),
        ("threads", "of torch"),
    ):
        flag, value = f"--{name.replace('_', '-')}", default[name].default
        out.add_argument(flag, type=int, default=value, metavar="N", help=f"{what} (default: {value})")
    seconds = default["speech_seconds"].default
    out.add_argument("--speech-seconds", type=float, default=seconds, metavar="S", help="decoded for the memory's peak")
    return out


def options(arguments: argparse.Namespace) -> Options:
    """Raises ValidationError for sizes that make no model."""
    kept = {name: value for name, value in vars(arguments).items() if name in Options.__dataclass_fields__}
    reference = preset_sizes() | dict(arguments.ref)
    models = {
        "tiny": sized("llama", TINY | dict(arguments.tiny)),
        "ref": sized("llama", reference),
        "yoco": sized("yoco", reference),
    }
    return Options(**kept | models | {"past": tuple(sorted(arguments.past))})


def flat(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """A figure's numbers with their full names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}")
    else:
        yield name, value


def tell(name: str, value: Any) -> None:
    """A line on stderr for each number, beside its target."""
    for key, number in flat(value, name):
        sign, bound = TARGETS[key]
        met = "met" if (number >= bound if sign == ">=" else number <= bound) else "MISSED"
        print(f"  {key:32} {number:9.3f}   {sign} {bound:<7.3g} {met}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser()
    arguments = commands.parse_args(argv)
    try:
        bench = Bench(options(arguments))
    except ValidationError as error:
        commands.error(error.errors()[0]["msg"])
    if arguments.resume and arguments.out is None:
        commands.error("--resume goes on with a report: name its folder with --out")
    torch.set_num_threads(arguments.threads)
    report = resumed(arguments.out / "decode.json", bench, arguments) if arguments.resume else {}
    for name in arguments.only:
        if name in report:
            continue
        began = time.perf_counter()
        print(f"{name} ...", file=sys.stderr, flush=True)
        report[name] = FIGURES[name](bench)
        if not all(math.isfinite(number) for _, number in flat(report[name], name)):
            raise RuntimeError(f"{name} was measured as {report[name]}")
        tell(name, report[name])
        bench.details.setdefault("seconds", {})[name] = round(time.perf_counter() - began, 1)
        print(f"  {bench.details['seconds'][name]:.0f} s", file=sys.stderr, flush=True)
        write(report, bench, arguments)
    print(write(report, bench, arguments))
    return 0


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What figures of one report have in common."""
    chosen = vars(arguments).items()
    return {name: value for name, value in chosen if name not in ("only", "out", "resume")} | {
        "torch": torch.__version__
    }


def resumed(path: Path, bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a report, whose details go into the bench.

    Raises:
        ValueError: they were measured with other options.
    """
    if not path.is_file():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    bench.details.update(report.pop("details"))
    was, wanted = bench.details.pop("run"), json.loads(json.dumps(settings(arguments), default=str))
    if was != wanted:
        differ = [name for name in wanted if was.get(name) != wanted[name]]
        raise ValueError(f"{path} was measured with another {', '.join(differ)}: name another --out")
    return report


def write(report: dict[str, Any], bench: Bench, arguments: argparse.Namespace) -> str:
    """The report as JSON; on disk as well, with its curves, where ``--out`` names a folder."""
    ordered = {name: report[name] for name in FIGURES if name in report}
    details = bench.details | {"run": settings(arguments)}
    text = json.dumps(ordered | {"details": details}, indent=1, default=str)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "decode.json").write_text(text + "\n", encoding="utf-8")
        plots.draw(bench.details, arguments.out / "decode.png")
    return text


if __name__ == "__main__":
    sys.exit(main())
