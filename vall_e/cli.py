"""``vall-e``: speak with a trained voice, look at it, and see what is installed.

Heavy modules are imported by the command that needs them, so that ``--help`` is quick.
Exit codes: 0 all went well, 1 a job failed (doctor: the default pipeline cannot run), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from vall_e.edit_cli import add_edit
from vall_e.model_cli import add_model
from vall_e.synth_cli import add_synth
from vall_e.transcribe_cli import add_transcribe
from vall_e.usage import MODELS, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return arguments.run(arguments)
    except UsageError as error:
        print(f"vall-e: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vall-e: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output left; the interpreter must not complain about it while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vall-e", description="A zero-shot voice model: speak, look, check.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_synth(commands)
    doctor = commands.add_parser("doctor", help="what is installed, what is missing, how to get it")
    doctor.add_argument("--json", action="store_true", help="one JSON object")
    doctor.set_defaults(run=_doctor)
    add_edit(commands)
    add_model(commands)
    add_transcribe(commands)
    return parser


def _doctor(arguments: argparse.Namespace) -> int:
    from vall_e.doctor import able, as_dict, examine, report

    findings = examine(MODELS)
    print(json.dumps(as_dict(findings), indent=2) if arguments.json else report(findings))
    return 0 if able(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
