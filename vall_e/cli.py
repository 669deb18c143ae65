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
from importlib import import_module
from typing import NoReturn

from vall_e.codec_cli import add_codec
from vall_e.edit_cli import add_edit
from vall_e.model_cli import add_model
from vall_e.synth_cli import add_synth
from vall_e.text_cli import add_text
from vall_e.transcribe_cli import add_transcribe
from vall_e.usage import MODELS, UsageError, tell_error

# Whole commands of modules above the library, by name: they are imported when such a command is given, never before.
ABOVE = {"runs": ("stages.runs", "trainings in MLflow: list, compare, where the data came from")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        if argv and argv[0] in ABOVE:
            return import_module(ABOVE[argv[0]][0]).main(argv[1:])
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except UsageError as error:
        tell_error(error, argparse.Namespace(json="--json" in argv))
        return 2
    except KeyboardInterrupt:
        print("vall-e: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output left; the interpreter must not complain about it while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse ends the process."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise UsageError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vall-e", description="A zero-shot voice model: speak, look, check.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_synth(commands)
    doctor = commands.add_parser("doctor", help="what is installed, what is missing, how to get it")
    doctor.add_argument("--json", action="store_true", help="one JSON object")
    doctor.set_defaults(run=_doctor)
    add_codec(commands)
    add_edit(commands)
    add_model(commands)
    add_text(commands)
    add_transcribe(commands)
    for name, (_, about) in ABOVE.items():
        commands.add_parser(name, help=about)
    return parser


def _doctor(arguments: argparse.Namespace) -> int:
    from vall_e.doctor import able, as_dict, examine, report

    findings = examine(MODELS)
    print(json.dumps(as_dict(findings), indent=2) if arguments.json else report(findings))
    return 0 if able(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
