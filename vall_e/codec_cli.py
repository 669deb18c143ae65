"""``vall-e codec``: codecs beside each other on a folder of recordings.

Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vall_e.usage import UsageError

if TYPE_CHECKING:
    from vall_e.codecs.base import Codec

NAMES = ("mel", "encodec", "dac", "nemo", "vocos")


def add_codec(commands: Any) -> None:
    """Add ``codec`` and its action to the parser's commands."""
    codec = commands.add_parser("codec", help="compare codecs on your recordings")
    actions = codec.add_subparsers(required=True, metavar="ACTION")
    parser = actions.add_parser(
        "compare",
        help="words, voice, sound and bits that each codec's copies keep, by number of levels",
        description="Copy recordings through every codec that is available and measure the copies beside the "
        "recordings: word error rate, speaker similarity, DNSMOS, mel distance (dB), bit rate, real-time factors.",
        epilog="Texts come from the folder's layout (sidecar .txt, metadata.csv); where there is none, from the "
        "recogniser on the recording. vocos is EnCodec with the decoder that --decoder-weights names.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="recordings")
    parser.add_argument(
        "--codec", action="append", metavar="NAME[=WEIGHTS]",
        help=f"one of {', '.join(NAMES)}, with a fitted folder or weights; again for more (default: all available)",
    )  # fmt: skip
    parser.add_argument("--decoder-weights", metavar="DIR", help="vocos: folder or OWNER/REPOSITORY")
    parser.add_argument("--levels", type=int, nargs="+", metavar="N", help="how many levels (default: 1, 2, 4 ... all)")
    parser.add_argument("--limit", type=int, default=24, metavar="N", help="recordings at most, evenly (default: 24)")
    parser.add_argument("--fit", action="store_true", help="fit the bundled mel codec on the folder first, quickly")
    parser.add_argument("--language", default="en-us", help="espeak-ng's name of the language (default: en-us)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write copies to listen to, figures and the plot here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures over the bit rate here (PNG)")
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    wanted = _wanted(arguments)
    items = _items(arguments)
    from tqdm import tqdm

    from vall_e.corpus.transcription.languages import whisper_language
    from vall_e.evaluation.asr import Recogniser
    from vall_e.evaluation.codecs import Comparison, level_counts, plot, table
    from vall_e.evaluation.mos import Dnsmos
    from vall_e.evaluation.speaker import SpeakerEncoder
    from vall_e.preparation import RecogniserConfig

    found: dict[str, Codec] = {}
    absent: dict[str, str] = {}
    for name, weights in wanted.items():
        try:
            found[name] = _load(name, weights, items, arguments)
        except (OSError, ValueError) as error:
            if weights is not None:
                raise UsageError(str(error)) from None
            absent[name] = str(error)
    recogniser = Recogniser(RecogniserConfig(language=whisper_language(arguments.language)))
    comparison = Comparison(items, recogniser, SpeakerEncoder(), Dnsmos(), arguments.language, arguments.out)
    rows = [comparison.recordings()]
    asked = {name: arguments.levels or level_counts(codec.levels) for name, codec in found.items()}
    counts = {name: [count for count in asked[name] if count <= codec.levels] for name, codec in found.items()}
    with tqdm(total=len(items) * sum(map(len, counts.values())), unit="copy", file=sys.stderr) as bar:
        for name, codec in found.items():
            bar.set_description(name)
            rows += comparison.copies(name, codec, counts[name], bar.update) if counts[name] else []
    figures = {
        "recordings": len(items), "seconds": round(comparison.seconds, 2), "rows": [row.as_dict() for row in rows],
        "not_available": absent,
    }  # fmt: skip
    for path in filter(None, (arguments.plot, arguments.out and arguments.out / "compare.png")):
        plot(rows, path)
    if arguments.out is not None:
        (arguments.out / "compare.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(table(rows))
        for name, reason in absent.items():
            print(f"{name}: not available: {reason}")
    return 0


def _wanted(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Codecs by name and their weights. Raises UsageError."""
    if arguments.limit < 1 or any(count < 1 for count in arguments.levels or ()):
        raise UsageError("--limit and --levels are at least 1")
    if not arguments.codec:
        return dict.fromkeys(NAMES)
    wanted: dict[str, str | None] = {}
    for given in arguments.codec:
        name, _, weights = given.partition("=")
        if name not in NAMES or name in wanted:
            raise UsageError(f"--codec {given}: give each of {', '.join(NAMES)} at most once")
        wanted[name] = weights or None
    return wanted


def _items(arguments: argparse.Namespace) -> list[Any]:
    """At most ``--limit`` recordings that can be read, evenly out of the folder's. Raises UsageError."""
    from vall_e.audio import AudioError, load
    from vall_e.corpus.layouts.folder import read_folder
    from vall_e.evaluation.codecs import Item
    from vall_e.preparation import IngestConfig

    try:
        found = read_folder(IngestConfig(source="folder", path=str(arguments.folder))).recordings
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    step = max(1, len(found) // arguments.limit)
    items = []
    for recording in found[::step][: arguments.limit]:
        try:
            load(recording.path)  # all of it: a header does not tell of half a file or of samples that are no numbers
        except AudioError as error:
            print(f"vall-e: left out: {error}", file=sys.stderr)
            continue
        items.append(Item(recording.key.replace("/", "_"), recording.path, recording.text))
    if not items:
        raise UsageError(f"{arguments.folder} has no recording that can be read")
    return items


def _load(name: str, weights: str | None, items: list[Any], arguments: argparse.Namespace) -> Codec:
    from vall_e.codecs.base import load_codec
    from vall_e.preparation import CodecConfig

    if name == "mel":
        if arguments.fit:
            return _fitted(items)
        return load_codec(CodecConfig(), weights or Path("models/codec"))
    decoder = {"decoder": "vocos", "decoder_weights": arguments.decoder_weights} if name == "vocos" else {}
    return load_codec(CodecConfig(name="encodec" if name == "vocos" else name, weights=weights, **decoder))


def _fitted(items: list[Any]) -> Codec:
    """The bundled codec after a short training on the recordings themselves: what it can be at best, quickly."""
    from tqdm import tqdm

    from vall_e.audio import load
    from vall_e.codecs.fit import fit_mel_codec
    from vall_e.preparation import MelCodecConfig

    config = MelCodecConfig(steps=300, batch_size=16, segment_frames=48)
    with tqdm(total=config.steps, unit="step", desc="fit mel", file=sys.stderr) as bar:
        wavs = [load(item.path, config.sample_rate)[0] for item in items]
        return fit_mel_codec(config, wavs, lambda step, figures: bar.update())[0]
