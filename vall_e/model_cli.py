"""``vall-e model``: look at a voice, a preset or a text checkpoint; convert one; let a text model write.

Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vall_e.usage import UsageError, sampling_of

UPTRAINING = """\
The key and value heads of a group become their mean (2305.13245, section 2.1). In that paper a few groups were
reasonable at once and a single one was not; training on for 5 % of the first training's steps brought most of the
quality back. To do that here, name the result as what the train stage starts from, at a low rate:
  python -m pipelines.repro train --set train.init_from=OUT --set model.kv_heads=G --set train.max_steps=500
OUT must not be models/voice, which the stage replaces."""


def add_model(commands: Any) -> None:
    """Add ``model`` and its actions to the parser's commands."""
    model = commands.add_parser("model", help="look at a model, convert it, let a text model write")
    actions = model.add_subparsers(required=True, metavar="ACTION")
    info = actions.add_parser(
        "info",
        help="size by part, memory, cache per second of speech, what its backbone can do, and its configuration",
    )
    info.add_argument(
        "target",
        nargs="?",
        metavar="WHAT",
        help="a voice's folder, a text checkpoint's folder, or the name of a profile or preset of conf/; "
        "by default the newest voice below models/",
    )
    info.add_argument("--json", action="store_true", help="one JSON object")
    info.set_defaults(run=_info)
    convert = actions.add_parser(
        "convert",
        help="fewer key/value heads in a trained model: a smaller cache",
        description="Write a voice or a text checkpoint with fewer key/value heads.",
        epilog=UPTRAINING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("folder", type=Path, metavar="DIR", help="a voice, or a checkpoint in Hugging Face's layout")
    convert.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not be there yet")
    convert.add_argument("--kv-heads", type=int, required=True, metavar="G", help="divides the heads that it has now")
    convert.set_defaults(run=_convert)
    generate = actions.add_parser(
        "generate", help="let a text model go on from a prompt", description="Go on from a prompt with a text model."
    )
    generate.add_argument("path", metavar="PATH", help="a folder in Hugging Face's layout, or a repository's name")
    generate.add_argument("--prompt", required=True, help="text to go on from")
    generate.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="at most so many (default: 64)")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0 is greedy (default: 0)")
    generate.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest; 0 from all")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from what makes up this share")
    generate.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    generate.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: cpu)")
    generate.add_argument("--json", action="store_true", help="one JSON object")
    generate.set_defaults(run=_generate)


def _info(arguments: argparse.Namespace) -> int:
    from vall_e.model_info import facts, report

    try:
        found = facts(arguments.target)
    except (OSError, ValueError) as error:
        raise UsageError(f"{arguments.target or 'the newest voice'} cannot be read: {error}") from None
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else report(found))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from vall_e.models.convert import convert

    try:
        done = convert(arguments.folder, arguments.out, arguments.kv_heads)
    except (OSError, ValueError) as error:
        raise UsageError(f"{arguments.folder} cannot be converted: {error}") from None
    print(f"{arguments.out}: {done['kv_heads']} key/value heads of {done['was']}")
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    given = {f"ar.{name}": getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
    sampling = sampling_of(given).ar
    if arguments.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens must be at least 1, not {arguments.max_new_tokens}")
    from transformers import AutoTokenizer

    from vall_e.backbones import huggingface
    from vall_e.models.text import TextModel

    try:
        folder = huggingface.find(arguments.path)
        model = TextModel.load(folder, arguments.device)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer(arguments.prompt)["input_ids"]
        (new,) = model.generate([ids], arguments.max_new_tokens, sampling, arguments.seed)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{arguments.path} cannot write: {error}") from None
    text = tokenizer.decode(new, skip_special_tokens=True)
    print(json.dumps({"text": text, "ids": new}, ensure_ascii=False) if arguments.json else text)
    return 0
