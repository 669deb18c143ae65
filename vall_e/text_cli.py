"""``vall-e text``: how a text is read, for looking into rejects and surprises.

Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_text(commands: Any) -> None:
    """Add the command to the parser's."""
    about = "how a text is read: its words and phones"
    text = commands.add_parser("text", help=about, description=f"{about[0].upper()}{about[1:]}.")
    text.add_argument("text", help="any text")
    text.add_argument("--language", default="en-us", metavar="NAME", help="espeak-ng language (default: en-us)")
    text.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json of a voice: name phones that it does not know"
    )
    text.add_argument("--json", action="store_true", help="print the result as JSON")
    text.set_defaults(run=_text)


def _text(arguments: argparse.Namespace) -> int:
    from vall_e.text.normalize import normalize
    from vall_e.text.phonemes import read
    from vall_e.text.tokenizer import Tokenizer

    try:
        words = normalize(arguments.text, arguments.language)
        (reading,) = read([words], arguments.language)
        tokenizer = None if arguments.tokenizer is None else Tokenizer.load(arguments.tokenizer)
    except (OSError, ValueError) as error:
        print(f"vall-e: {error}", file=sys.stderr)
        return 1
    facts: dict[str, Any] = {"words": words, "phones": reading.phones}
    facts |= {"foreign": list(reading.foreign), "unread": list(reading.unread)}
    if tokenizer is not None:
        facts["unknown"] = [unknown.phone for unknown in tokenizer.validate([(words, reading.phones)])]
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    print(f"words: {words}\nphones: {' '.join('|' if phone == ' ' else phone for phone in reading.phones)}")
    for name, meaning in (
        ("foreign", "read by another language's rules"),
        ("unread", "not in the language's letters"),
        ("unknown", "phones that the tokenizer does not know"),
    ):
        if facts.get(name):
            print(f"{meaning}: {' '.join(facts[name])}")
    return 0
