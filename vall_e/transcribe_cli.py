"""``vall-e transcribe``: what recordings say, read by the voice itself.

Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vall_e.usage import UsageError, add_voice, load_voice, tell_error

if TYPE_CHECKING:
    from vall_e.generation.transcribe import Transcript


def add_transcribe(commands: Any) -> None:
    """Add ``transcribe`` to the parser's commands."""
    parser = commands.add_parser(
        "transcribe",
        help="phones or words of recordings, read by a voice that learned the task stt",
        description="Write what recordings say, a line a file: its name, a tab, and words or phones. Long recordings "
        "are cut at pauses into what the voice was trained on.",
        epilog="A voice reads only what it was trained to: model.tasks needs stt (recordings to phones), and un-phn "
        "(phones to words) for words. A line of --json: file, seconds, phones, text, and segments with start and end "
        "in seconds and the mean log-probability of a phone, which says how sure the voice is.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recordings of any format and rate")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--phones", action="store_true", help="phones, words apart by two spaces")
    form.add_argument("--words", action="store_true", help="words (default where the voice learned them)")
    parser.add_argument("--language", metavar="NAME", help="espeak-ng language that is spoken (default: the voice's)")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a file; file and error for one that cannot be read"
    )
    add_voice(parser)
    parser.set_defaults(run=_transcribe)


def _transcribe(arguments: argparse.Namespace) -> int:
    from vall_e.audio import AudioError
    from vall_e.generation.transcribe import TranscribeError

    voice = load_voice(arguments)
    words = arguments.words or (not arguments.phones and "un-phn" in voice.config.model.all_tasks)
    failed = 0
    for file in arguments.files:
        try:
            found = voice.transcribe(file, words=words, language=arguments.language)
        except TranscribeError as error:
            raise UsageError(str(error)) from None
        except AudioError as error:
            tell_error(error, arguments, file=str(file))
            failed += 1
            continue
        print(_json(file, found) if arguments.json else _line(file, found), flush=True)
    return 1 if failed else 0


def _line(file: Path, found: Transcript) -> str:
    return f"{file}\t{' '.join(found.phones) if found.text is None else found.text}"


def _json(file: Path, found: Transcript) -> str:
    segments = [
        {
            "start": round(s.start, 3), "end": round(s.end, 3), "phones": list(s.phones), "text": s.text,
            "log_probability": round(s.log_probability, 4), "finished": s.finished,
        } for s in found.segments
    ]  # fmt: skip
    whole = {"file": str(file), "seconds": round(found.seconds, 3), "phones": found.phones, "text": found.text}
    return json.dumps(whole | {"segments": segments}, ensure_ascii=False)
