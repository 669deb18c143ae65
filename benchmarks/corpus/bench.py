"""The corpus that is measured, and encoding it here or in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from vall_e.config import Params, load_params, merge, parse_params, read_yaml
from vall_e.corpus.encode import encode

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT.parent / "shared/data/digits"
SHARDS = 8  # of the corpus, for the figures of several workers and of kills


@dataclass
class Bench:
    """A corpus in a folder, with what its stages made of it.

    Attributes:
        home: the folder, laid out as a project is.
        params: of its stages.
        rounds: of each comparison.
        runs: kills.
        details: by figure, what was measured besides its value.
    """

    home: Path
    params: Params
    rounds: int
    runs: int
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def manifest(self) -> Path:
        made = [self.home / "data" / stage / "manifest.parquet" for stage in ("quality", "ingest")]
        return next(path for path in made if path.is_file())

    @property
    def phones(self) -> Path:
        return self.home / "data/phonemize/phones.parquet"

    def changed(self, **changes: Any) -> Params:
        """Parameters with ``changes`` and a shard for each eighth of the corpus."""
        count = pq.read_metadata(self.phones).num_rows
        raw = merge(self.params.model_dump(mode="json"), {"encode": {"shard_size": -(-count // SHARDS)}})
        return parse_params(merge(raw, changes))

    def encode(self, params: Params, codec: Path, out: str = "out") -> Path:
        """The encode stage's work, beginning with nothing. Returns its folder."""
        folder, work = self.home / out, self.home / f".work-{out}"
        for old in (folder, work):
            shutil.rmtree(old, ignore_errors=True)
        encode(params, self.manifest, self.phones, codec, folder, work, False)
        return folder


def make_bench(home: Path, source: str, minutes: float, rounds: int, runs: int) -> Bench:
    """A project's folder with the parameters of a small corpus of about so many minutes; one that is there stays."""
    if (home / "params.yaml").is_file():
        return Bench(home, load_params(home / "params.yaml"), rounds, runs)
    home.mkdir(parents=True, exist_ok=True)
    raw = read_yaml(ROOT / "params.yaml")
    raw = merge(raw, {"codec": {"mel": {"steps": 20}}, "encode": {"speeds": []}, "card": {"title": "Benchmark"}})
    if source == "digits":
        raw = merge(
            raw, {k: v for k, v in read_yaml(ROOT / "conf/digits.yaml").items() if k in ("ingest", "phonemize")}
        )
        raw = merge(raw, {"ingest": {"path": "recordings"}, "transcribe": {"verify_fraction": 0.1, "max_cer": 2.0}})
        files = sorted(DIGITS.rglob("*.wav"))
        share = min(1.0, minutes / 20.0)
        for path in files[:: max(1, round(1 / share))]:
            target = home / "recordings" / path.relative_to(DIGITS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    else:
        corpus = read_yaml(ROOT / "conf/demo-corpus.yaml")
        (home / "conf").mkdir(parents=True)
        (home / "conf/demo-corpus.yaml").write_text(yaml.safe_dump(corpus, allow_unicode=True), encoding="utf-8")
        raw = merge(raw, {"transcribe": {"verify_fraction": 0.1, "max_cer": 2.0}})
    (home / "params.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    return Bench(home, load_params(home / "params.yaml"), rounds, runs)


def started(bench: Bench, workers: int, out: Path, **settings: Any) -> subprocess.Popen:
    """Encoding in a process of its own, which notes the shards that it begins in ``begun(out)``."""
    params = bench.changed(executor={"kind": "local", "workers": workers}, encode=settings)
    places = (bench.manifest, bench.phones, bench.home / "models/codec", out, bench.home / f".work-{out.name}")
    begun(out).unlink(missing_ok=True)
    arguments = json.dumps([params.model_dump(mode="json"), *map(str, (*places, begun(out)))])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "benchmarks.corpus.child", arguments], env=environment)


def begun(out: Path) -> Path:
    """Where a run into ``out`` notes its shards: a line each, time.time() and name."""
    return out.with_suffix(".begun")
