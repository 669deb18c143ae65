"""The unfinished work of trainings in ``.work``: made with which settings, in whose hands, and how long it stays."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vall_e.config import Params, flatten
from vall_e.corpus.work import WorkFolder, digest_of, key_of, others, write_text
from vall_e.models.start import sources
from vall_e.training.checkpoints import reached
from vall_e.training.ranks import rank_of

STAGE = "train"
INPUTS = ("data/encode", "data/similar", "data/phonemize", "models/codec")
CODE = ("models", "nn", "backbones", "data", "training")
SETTINGS = "settings.json"
KEPT = 3  # works of other settings that stay, for whoever goes back to these
NAMED = 8  # differences in a line
PATIENCE = 10.0  # seconds that processes of a killed training may take to end
# On the weights; of a run that diverged, what it did about it is kept with the work (``Course``).
NO_INFLUENCE = {"threads", "loader_workers", "samples", "preflight", "checkpoint_every", "rollback"}


class Busy(ValueError):
    """Another process trains in this workspace."""


@contextmanager
def alone(work_root: Path) -> Iterator[None]:
    """Hold the trainings of a workspace; of several processes of one training rank 0 holds it for all.

    Raises:
        Busy: another process does, with its number and how to end it.
    """
    if rank_of() > 0:
        yield
        return
    work_root.mkdir(parents=True, exist_ok=True)
    owner = work_root / f"{STAGE}.pid"
    try:
        lock = FileLock(work_root / f"{STAGE}.lock").acquire(timeout=PATIENCE)
    except Timeout:
        who, where = json.loads(owner.read_text(encoding="utf-8")) if owner.is_file() else ("?", platform.node())
        raise Busy(
            f"process {who} on {where} trains here already (it holds {(work_root / STAGE).resolve()}.lock): wait for "
            f"it, or end it with `kill {who}`, which saves a checkpoint first, and run again: training goes on from it"
        ) from None
    with lock:
        write_text(owner, json.dumps([os.getpid(), platform.node()]))
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)


def work_folder(params: Params, root: Path, work_root: Path) -> WorkFolder:
    """The folder of this run, made where it is missing.

    Works of other settings stay, the last ``KEPT`` that have made a step; the rest go. It says so on stderr where this
    run begins anew, and of each that goes.
    """
    facts = _facts(params, root)
    work = WorkFolder(STAGE, key_of(params=facts), work_root, alone=False)
    if rank_of() > 0:
        return work
    begins, kept = reached(work.path) is None, 0
    for other in others(STAGE, work.key, work_root):
        step, stays = reached(other), False
        if step:
            kept, stays = kept + 1, kept < KEPT
            if begins or not stays:
                print(_told(other, step, facts, stays), file=sys.stderr, flush=True)
        if not stays:
            shutil.rmtree(other, ignore_errors=True)
    if not work.done(SETTINGS):
        write_text(work.path / SETTINGS, json.dumps(facts, indent=1) + "\n")
    return work


def begun(params: Params, root: Path, work_root: Path) -> Path | None:
    """The folder of this run where it has written a checkpoint; inputs are read only where some run has."""
    there = [path for path in others(STAGE, "", work_root) if reached(path) is not None]
    if not there:
        return None
    path = WorkFolder.place(STAGE, key_of(params=_facts(params, root)), work_root)
    return path if path in there else None


def _facts(params: Params, root: Path) -> dict[str, Any]:
    """What the weights depend on, by name: settings, and digests of what is read and of the code."""
    package = Path(__file__).parent.parent
    settings = {
        "model": params.model.model_dump(mode="json"),
        "train": params.train.model_dump(mode="json", exclude=NO_INFLUENCE),
    }
    return {
        **flatten(settings),
        **{name: digest_of(root / name) for name in INPUTS},
        "init_from": [digest_of(source) if isinstance(source, Path) else source for source in sources(params, root)],
        **{f"vall_e/{name}": digest_of(package / name) for name in CODE},
    }


def _told(path: Path, step: int, facts: Mapping[str, Any], stays: bool) -> str:
    file, said = path / SETTINGS, "settings that it does not name"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        names = [name for name in {**before, **facts} if before.get(name) != facts.get(name)]
        more = [f"and {len(names) - NAMED} more"] * (len(names) > NAMED)
        said = ", ".join([*(_difference(name, before, facts) for name in names[:NAMED]), *more])
    fate = "kept: those settings go on from it" if stays else f"removed: the last {KEPT} such are kept"
    return f"train: {path} has {step} steps with other settings ({said}); {fate}"


def _difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name.partition(".")[0] not in ("model", "train"):
        return f"another {name}"
    return f"{name} was {_shown(before, name)}, is {_shown(now, name)}"


def _shown(facts: Mapping[str, Any], name: str) -> str:
    return json.dumps(facts[name]) if name in facts else "not there"
