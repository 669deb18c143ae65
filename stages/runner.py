"""What every stage does around its own work: read and check the parameters, seed, record, time, write whole or nothing.

A stage module declares a ``Stage`` and hands it to ``main``. Its out folders are built beside their places, brought
to the disk and renamed at the end, so a folder that exists is whole, whatever ended the process or the machine.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.lineage import dvc_hash
from stages.recorder import Recorder, TrackingError
from stages.refusal import FAILED, REFUSED, is_refusal
from vall_e.config import Params, load_params
from vall_e.corpus.work import digest_of, replace_folder, write_text

Figures = Mapping[str, Any]
ROOT = Path(".")


@dataclass(frozen=True)
class Stage:
    """One row of the pipeline's table.

    Attributes:
        name: name of the module, of the DVC stage and of ``metrics/NAME.json``.
        about: what the stage does, for ``--help``.
        run: the work; returns flat figures (``rejected`` may be a dictionary rule → number).
        params: sections (or ``section.key``) of ``params.yaml`` that it uses.
        reads: folders and files that earlier stages made.
        writes: out folders that the stage owns.
        artifacts: out folders to copy into MLflow, into the model's training run as well.
        torch_seed: seed torch as well (imports it).
        follow: what a process does that works for another one (rank above 0 of a training): it records, measures and
            publishes nothing.
    """

    name: str
    about: str
    run: Callable[[Context], Figures]
    params: tuple[str, ...]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    torch_seed: bool = True
    follow: Callable[[Params], None] | None = None

    @property
    def purpose(self) -> str:
        """``model`` for what makes a voice or works on one, else ``data``: an experiment in MLflow each."""
        return "model" if "models/voice" in (*self.reads, *self.writes) else "data"


@dataclass
class Context:
    """What a stage's work is given."""

    stage: Stage
    params: Params
    run: Recorder
    started: float = field(default_factory=time.time)

    def out(self, path: str) -> Path:
        """The folder to build ``path`` in; the runner renames it to ``path`` when the stage succeeds."""
        assert path in self.stage.writes, path
        return _building(Path(path))


def main(stage: Stage, argv: Sequence[str] | None = None) -> int:
    """The command line of a stage. Returns the exit code: 0, or after an error that is said in one line ``REFUSED``
    (``NAME: error: ...``, the input has to be mended) or ``FAILED`` (``NAME: failed: ...``, a second try may do)."""
    args = _parser(stage).parse_args(argv)
    if not faulthandler.is_enabled():  # a crash in compiled code says which line called it
        faulthandler.enable(sys.__stderr__)
    try:
        execute(stage, load_params(args.params))
    except (ValueError, OSError, ImportError, TrackingError) as error:
        if os.environ.get("VALL_E_DEBUG"):
            raise
        ours = type(error).__module__.startswith(("vall_e", "stages"))
        hint = "" if ours or isinstance(error, OSError) else f" ({_place(error)}; VALL_E_DEBUG=1 shows the traceback)"
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        refused = is_refusal(error)
        print(f"{stage.name}: {'error' if refused else 'failed'}: {said}{hint}", file=sys.stderr)
        return REFUSED if refused else FAILED
    except KeyboardInterrupt as error:
        print(f"{stage.name}: stopped{f': {error}' if str(error) else ''}", file=sys.stderr)
        return 130
    return 0


def execute(stage: Stage, params: Params) -> dict[str, Any]:
    """Run a stage and leave its outs, ``metrics/NAME.json`` and its MLflow run. Returns the figures.

    Raises:
        FileNotFoundError: an input is missing, naming the command that makes it.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for path in stage.reads:
        if not Path(path).exists():
            raise FileNotFoundError(
                f"{path} is not there: run `dvc repro {stage.name}`, which makes what {stage.name} needs"
            )
    if stage.follow is not None and _follows():
        stage.follow(params)
        return {}
    for path in stage.writes:
        _prepare(Path(path))
    training_run = training_run_of(stage)
    with Recorder(params.tracking, ROOT, stage.name, params.profile, stage.purpose, training_run) as run:
        run.params(_used(stage, params))
        _record_state(run)
        seed_everything(getattr(getattr(params, stage.name, None), "seed", 0), with_torch=stage.torch_seed)
        for path in stage.reads:
            run.read(path, digest_of(path))
        context = Context(stage, params, run)
        try:
            figures = dict(stage.run(context))
        except ValueError as error:
            for path in stage.writes:
                if (rows := _building(Path(path)) / "rejects.parquet").is_file():
                    error.add_note(f"every reject is a row of {rows.as_posix()}")
            raise
        figures["seconds"] = round(time.time() - context.started, 2)
        for path in stage.writes:
            replace_folder(_building(Path(path)), Path(path))
            run.wrote(path, digest_of(path), dvc_hash(path))
        write_json(ROOT / "metrics" / f"{stage.name}.json", figures)
        run.metrics(figures)
        run.artifact(ROOT / "metrics" / f"{stage.name}.json")
        for path in stage.artifacts:
            run.artifact(Path(path), path, parent=True)
    print(summary_line(stage.name, figures), flush=True)
    return figures


def _record_state(run: Recorder) -> None:
    """Keep the parameters, and the digests of all that DVC has made up to here, with the run; the latter with the
    model's training run as well."""
    for name, parent in (("params.yaml", False), ("dvc.lock", True)):
        if (file := ROOT / name).is_file():
            run.artifact(file, "pipeline", parent)
            run.tags({f"digest.{name}": digest_of(file)}, parent)


def training_run_of(stage: Stage) -> str | None:
    """The id of the run that trained the model that a stage reads, written beside the model."""
    record = ROOT / "models" / "voice" / "run.json"
    if "models/voice" in stage.reads and record.is_file():
        return json.loads(record.read_text(encoding="utf-8")).get("run_id")
    return None


def record_cached(stage: Stage, params: Params, origin: Mapping[str, str], root: Path = ROOT) -> str:
    """Record in MLflow, with the tags ``origin``, that DVC found the stage of the project in ``root`` unchanged.

    Returns:
        the run's id.
    """
    from stages import tracking

    metrics_file = root / "metrics" / f"{stage.name}.json"
    figures = json.loads(metrics_file.read_text(encoding="utf-8")) if metrics_file.is_file() else {}
    outputs = {path: digest_of(root / path) for path in stage.writes if (root / path).exists()}
    where = (params.tracking, root, stage.name, params.profile)
    return tracking.record_cached(*where, figures, outputs, stage.purpose, origin)


def seed_everything(seed: int, *, with_torch: bool) -> None:
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - of libraries that draw from the global generator
    if with_torch:
        import torch

        torch.manual_seed(seed)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write figures atomically, numbers rounded to six digits after the point."""
    write_text(path, json.dumps(_rounded(values), indent=2) + "\n")


def summary_line(name: str, figures: Figures) -> str:
    """``encode: 3,104 kept · 12 rejected (clipped 10, short 2) · frames 81,234 · 41.2 s``."""
    parts = []
    for key, value in figures.items():
        if key == "rejected" and isinstance(value, Mapping):
            rules = ", ".join(f"{rule} {count}" for rule, count in value.items())
            parts.append(f"{sum(value.values()):,} rejected" + (f" ({rules})" if rules else ""))
        elif key == "kept":
            parts.append(f"{value:,} kept")
        elif key != "seconds" and isinstance(value, int | float | str):
            parts.append(f"{key} {_short(value)}")
    return f"{name}: " + " · ".join([*parts, f"{figures.get('seconds', 0):.1f} s"])


def _short(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def _follows() -> bool:
    """This process was started beside rank 0, by torchrun or by Lightning."""
    from vall_e.training.ranks import rank_of

    return rank_of() > 0


def _building(path: Path) -> Path:
    return path.with_name(f".{path.name}.building")


def _prepare(path: Path) -> None:
    shutil.rmtree(_building(path), ignore_errors=True)
    _building(path).mkdir(parents=True)


def _used(stage: Stage, params: Params) -> dict[str, Any]:
    """The parameters that a stage uses, nested, with the profile's name."""
    dump = params.model_dump(mode="json")
    used: dict[str, Any] = {"profile": params.profile}
    for key in stage.params:
        value: Any = dump
        for part in key.split("."):
            value = value[part]
        used[key] = value
    return used


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"


def _parser(stage: Stage) -> argparse.ArgumentParser:
    lines = ["parameters (params.yaml explains each):"]
    for key in stage.params:
        owner: Any = Params()
        for part in key.split("."):
            owner = getattr(owner, part)
        fields = owner.model_dump(mode="json") if hasattr(owner, "model_dump") else {}
        lines += [f"  {key}.{name} = {value}" for name, value in fields.items()] or [f"  {key} = {owner}"]
    lines += ["", "reads:  " + (", ".join(stage.reads) or "ingest.path"), "writes: " + ", ".join(stage.writes)]
    lines += [f"        metrics/{stage.name}.json", "", f"In the pipeline: dvc repro {stage.name}"]
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage.name}",
        description=stage.about,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="parameters (default: params.yaml)")
    return parser
