"""Before a long run: would `train` run, what would it take. ``python -m stages.preflight``; `train` begins with it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vall_e.config import Params, load_params

ABOUT = """\
Check what `train` would read and do, without training: every shard (columns, range of the codes, lengths), phones that
the tokenizer does not know, lengths against train.max_response_seconds and train.batch_frames, room on the disk. Then a
few steps on one real batch: its loss must fall, and they are timed and their memory is measured. A table on stdout; the
exit code is 1 where the run would fail. The stages before train must have run (dvc repro similar)."""

ROOT, VOICE, WORK = Path("."), Path("models/voice"), Path(".work")


def at_the_start(params: Params) -> None:
    """What `train` does first: the quick checks always, steps where ``preflight.rehearses`` says so.

    Raises:
        PreflightError: the run would fail.
    """
    from vall_e.training import preflight

    checks = preflight.inspect(params, ROOT, WORK)
    if not preflight.failed(checks) and preflight.rehearses(params, ROOT, WORK):
        from vall_e.training.rehearsal import rehearse

        checks += rehearse(params, ROOT, WORK, VOICE)[0]
    preflight.demand(checks)
    print(preflight.table(checks), file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 where the training would run, else 1."""
    args = _parser().parse_args(argv)
    from vall_e.training import preflight

    figures: dict[str, float] = {}
    try:
        params = load_params(args.params)
        params = with_voice(params)
        checks = preflight.inspect(params, ROOT, WORK)
        if not args.quick and not preflight.failed(checks):
            from vall_e.training.rehearsal import rehearse

            more, figures = rehearse(params, ROOT, WORK, VOICE)
            checks += more
    except (ValueError, OSError, ImportError) as error:
        print(f"preflight: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(preflight.as_json(checks, figures), indent=1) if args.json else preflight.table(checks))
    return 1 if preflight.failed(checks) else 0


def with_voice(params: Params) -> Params:
    """``params`` whose train.init_from is a folder, fetched where it names a registered model."""
    from stages.fetch import fetch, is_registered

    name = params.train.init_from
    if name is None or not is_registered(name):
        return params
    folder = fetch(name, params.tracking, ROOT)
    return params.model_copy(update={"train": params.train.model_copy(update={"init_from": folder.as_posix()})})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stages.preflight", description=ABOUT)
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="parameters (default: params.yaml)")
    parser.add_argument("--quick", action="store_true", help="no steps: the checks that train begins with")
    parser.add_argument("--json", action="store_true", help="checks and figures as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
