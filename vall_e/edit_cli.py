"""``vall-e edit``, ``convert``, ``clean`` and ``extract``: commands that change a recording.

Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vall_e.usage import (
    STANDARD,
    add_output,
    add_seed,
    add_voice,
    checked_output,
    checked_seed,
    load_voice,
    pour,
    tell_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vall_e.generation.recording import Changed
    from vall_e.generation.synthesize import Voice


def add_edit(commands: Any) -> None:
    """Add the commands to the parser's."""
    edit = _command(commands, "edit", _edit, "replace words of a recording, the rest stays as it is, sample by sample")
    edit.add_argument("--start", type=float, required=True, metavar="S", help="seconds at which the old words begin")
    edit.add_argument(
        "--end", type=float, required=True, metavar="S", help="seconds at which they end (as --start: insert something)"
    )
    edit.add_argument(
        "--text",
        required=True,
        help='the whole sentence as it shall be, the new words in brackets: "seven [three] nine"; "seven [] nine" '
        "takes words out",
    )
    edit.add_argument("--seconds", type=float, metavar="S", help="length of the new part (default: the model says)")
    edit.add_argument("--noise", action="store_true", help="the recording is noisy, and so shall the new part be (nse)")
    convert = _command(commands, "convert", _convert, "say a recording again in the voice of another one")
    convert.add_argument("--ref-audio", type=Path, required=True, metavar="FILE", help="a recording of the voice")
    convert.add_argument("--text", help="what the recording says: with it words survive more masks")
    convert.add_argument(
        "--mask", type=float, default=0.6, metavar="X", help="share that is made anew, 0 to 1 (default: 0.6)"
    )
    clean = _command(commands, "clean", _clean, "speech without the noise around it, or the noise without the speech")
    clean.add_argument("--keep", choices=("speech", "noise"), default="speech", help="what to keep (default: speech)")
    extract = _command(commands, "extract", _extract, "one of two people who speak at once")
    extract.add_argument("--ref-audio", type=Path, required=True, metavar="FILE", help="a recording of whom to keep")


def _command(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    command.add_argument("recording", type=Path, metavar="RECORDING", help="any format and rate")
    add_output(command)
    command.add_argument("--language", metavar="NAME", help="espeak-ng language of the text (default: the voice's)")
    add_seed(command)
    add_voice(command)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run)
    return command


def _edit(arguments: argparse.Namespace) -> int:
    from vall_e.audio import AS_READ, save_like

    def work(voice: Voice, seed: int) -> Changed:
        return voice.edit(
            arguments.recording, arguments.start, arguments.end, arguments.text, seconds=arguments.seconds,
            noise=arguments.noise, seed=seed, language=arguments.language,
        )  # fmt: skip

    def save(output: str, changed: Changed) -> None:
        if output == STANDARD:
            pour(changed.wav, changed.sample_rate, AS_READ)
        else:
            save_like(output, changed.wav, arguments.recording)

    return _run(arguments, work, save)


def _convert(arguments: argparse.Namespace) -> int:
    def work(voice: Voice, seed: int) -> Changed:
        return voice.convert(
            arguments.recording, arguments.ref_audio, arguments.text, mask=arguments.mask, seed=seed,
            language=arguments.language,
        )  # fmt: skip

    return _run(arguments, work)


def _clean(arguments: argparse.Namespace) -> int:
    task = {"speech": "ns", "noise": "sr"}[arguments.keep]
    return _run(arguments, lambda voice, seed: voice.separate(arguments.recording, task, seed=seed))


def _extract(arguments: argparse.Namespace) -> int:
    return _run(
        arguments, lambda voice, seed: voice.separate(arguments.recording, "tse", arguments.ref_audio, seed=seed)
    )


def _save(output: str, changed: Changed) -> None:
    from vall_e.audio import save_wav

    if output == STANDARD:
        pour(changed.wav, changed.sample_rate)
    else:
        save_wav(output, changed.wav, changed.sample_rate)


def _run(arguments: argparse.Namespace, work: Any, save: Callable[[str, Changed], None] = _save) -> int:
    """Do ``work`` with the voice, save what comes out, and tell."""
    output, given = checked_output(arguments), checked_seed(arguments)
    voice = load_voice(arguments)
    seed = voice.config.sampling.seed if given is None else given
    try:
        changed = work(voice, seed)
        save(output, changed)
    except BrokenPipeError:  # the reader of -o - left
        raise
    except (OSError, ValueError) as error:
        tell_error(error, arguments)
        return 1
    for warning in changed.warnings:
        print(f"vall-e: {warning}", file=sys.stderr)
    facts = {
        "path": output, "seconds": round(changed.seconds, 3), "new_from": round(changed.start, 3),
        "new_to": round(changed.end, 3), "compute_seconds": round(changed.compute_seconds, 3),
        "warnings": changed.warnings,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
    elif output != STANDARD:
        print(f"{output}: {changed.seconds:.2f} s, new from {changed.start:.2f} to {changed.end:.2f} s")
    return 0
