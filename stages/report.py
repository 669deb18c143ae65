"""report: one page with everything, to read and to listen to."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.runner import Context, Figures, Stage, main

ABOUT = """\
Build report/index.html (audio side by side, plots, tables, rejects), report/standalone.html (the same in one file, as
MLflow shows it), report/model_card.md and metrics/summary.json out of what the other stages left, and print what to do
next. The pages need no server."""


def run(stage: Context) -> Figures:
    from vall_e.evaluation.report import build_report
    from vall_e.evaluation.summary import format_summary

    folder = stage.out("report")
    summary = build_report(stage.params, ".", folder, Path("metrics/summary.json"))
    stage.run.parent_metrics({key: value for key, value in summary.items() if key != "seconds"}, "report.")
    print(format_summary(summary))
    return {}


STAGE = Stage(
    "report",
    ABOUT,
    run,
    params=("report", "profile", "tracking"),
    reads=(
        "data/ingest",
        "data/transcribe",
        "data/quality",
        "data/phonemize",
        "data/encode",
        "data/evaluate",
        "data/score",
        "models/voice",
        "plots",
    ),
    writes=("report",),
    artifacts=("report",),
    torch_seed=False,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
