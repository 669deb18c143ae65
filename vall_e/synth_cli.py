"""``vall-e synth``: speak a text of any length, or many texts, in the voice of a recording.

Heavy modules are imported when they are needed, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vall_e.usage import (
    STANDARD,
    UsageError,
    add_output,
    add_sampling,
    add_seed,
    add_voice,
    checked_output,
    checked_seed,
    load_voice,
    pour,
    sampling_given,
    sampling_of,
    tell_error,
    voice_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from vall_e.decoding import SamplingConfig
    from vall_e.generation.streaming import AudioChunk
    from vall_e.generation.synthesize import Voice
    from vall_e.jobs import Job, Result

OF_ONE = ("ref_audio", "ref_text", "continue_ref", "language", "duration", "speed")  # and keys of a job


def add_synth(commands: Any) -> None:
    """The command's options, and what it runs."""
    synth = commands.add_parser(
        "synth",
        help="speak a text, or a file of texts, in the voice of a recording",
        description="Speak a text in the voice of a reference recording of any format and rate. A text longer than "
        "what the voice was trained on is spoken in segments, cut at its punctuation, which also says how long the "
        "pauses between them are. Segments in which something went wrong are drawn anew; what is still wrong then is "
        "told.",
        epilog='A line of --batch: {"id": "a", "text": "seven", "ref_audio": "me.wav", "ref_text": "...", "seed": 1, '
        '"continue_ref": false, "language": "en-us", "duration": 2.5, "speed": 1.2} (all after ref_audio may be left '
        "out, and duration and speed exclude one another); the result is DIR/a.wav and a JSON line on the standard "
        "output.",
    )
    what = synth.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", help="what to say")
    what.add_argument("--text-file", metavar="FILE", help="what to say, UTF-8, of any length; - is the standard input")
    what.add_argument("--batch", type=Path, metavar="JOBS", help="a JSON Lines file with one job a line")
    synth.add_argument("--ref-audio", type=Path, metavar="FILE", help="a recording of the voice")
    synth.add_argument("--ref-text", help="what the recording says; only --continue-ref needs it")
    synth.add_argument(
        "--continue-ref",
        action="store_true",
        help="go on from the recording as if it were the beginning of the speech, instead of only imitating its voice",
    )
    synth.add_argument("--language", metavar="NAME", help="espeak-ng language of the text (default: the voice's)")
    pace = synth.add_mutually_exclusive_group()
    pace.add_argument("--duration", type=float, metavar="SECONDS", help="how long the speech is to last")
    pace.add_argument(
        "--speed",
        type=float,
        metavar="FACTOR",
        help="how fast to speak, 0.25 to 4; 0.5 to 2 left to right (default: 1)",
    )
    add_output(synth)
    synth.add_argument("--out-dir", type=Path, metavar="DIR", help="with --batch: folder of the wave files")
    synth.add_argument("--batch-size", type=int, default=16, metavar="N", help="jobs spoken at once (default: 16)")
    add_seed(synth)
    add_sampling(synth)
    add_voice(synth)
    faster = synth.add_mutually_exclusive_group()
    faster.add_argument(
        "--draft",
        type=Path,
        metavar="DIR",
        help="a smaller voice of the same codes and phones that drafts for this one: the same speech, sooner (needs "
        "--guidance 0 --candidates 1)",
    )
    faster.add_argument(
        "--exit-layer",
        type=int,
        metavar="N",
        help="the same with the first N layers of a voice that learned early exits",
    )
    synth.add_argument(
        "--beam", type=int, metavar="N", help="search with N hypotheses instead of drawing (needs --candidates 1)"
    )
    synth.add_argument(
        "--stream",
        action="store_true",
        help="with -o -: pour sound out while it is drawn, one candidate, no retries",
    )
    synth.add_argument("--json", action="store_true", help="print one JSON object: segments, timings, warnings")
    synth.set_defaults(run=_synth)


def _synth(arguments: argparse.Namespace) -> int:
    checked_seed(arguments)
    if arguments.batch is not None:
        jobs = _jobs(arguments)
        return _speak_many(arguments, *_voice(arguments), jobs)
    text = _text(arguments)
    return _speak_one(arguments, *_voice(arguments), text)


def _text(arguments: argparse.Namespace) -> str:
    """What to say, after a look at whether the other options fit. Raises UsageError."""
    name = "--text" if arguments.text is not None else "--text-file"
    if arguments.out_dir is not None:
        raise UsageError(f"--out-dir belongs to --batch; with {name} name the file with -o")
    if arguments.ref_audio is None:
        raise UsageError(f"{name} needs --ref-audio, a recording of the voice")
    if arguments.stream and arguments.output != STANDARD:
        raise UsageError("--stream pours sound out as it comes: give -o -")
    if arguments.stream and (arguments.duration is not None or arguments.continue_ref):
        raise UsageError("--stream knows neither --duration nor --continue-ref: leave out --stream or these")
    if arguments.stream and arguments.beam is not None:
        raise UsageError("--beam knows what it says only at its end: leave out --beam or --stream")
    checked_output(arguments)
    text = arguments.text if arguments.text is not None else _read(arguments.text_file)
    if not text.strip():
        raise UsageError(f"{name} is empty")
    return text


def _read(name: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if name == STANDARD else Path(name).read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--text-file {name} is not UTF-8 (byte {error.start}): convert it") from None


def _jobs(arguments: argparse.Namespace) -> list[Job | Result]:
    from vall_e.jobs import read_jobs

    if arguments.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    for name in OF_ONE:
        if getattr(arguments, name) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} belongs to --text; with --batch it stands in the jobs file")
    if arguments.output is not None:
        raise UsageError("--output belongs to --text; with --batch name the folder with --out-dir")
    if arguments.stream:
        raise UsageError("--stream belongs to --text: jobs are written to files, whole")
    if arguments.out_dir is None:
        raise UsageError("--batch needs --out-dir, the folder for the wave files")
    try:
        jobs = read_jobs(arguments.batch, arguments.out_dir)
        arguments.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    if not jobs:
        raise UsageError(f"{arguments.batch} has no jobs")
    return jobs


def _voice(arguments: argparse.Namespace) -> tuple[Voice, SamplingConfig]:
    folder, given = voice_folder(arguments.model), sampling_given(arguments)
    given |= {} if arguments.seed is None else {"seed": arguments.seed}
    given |= {} if arguments.beam is None else {"beam.width": arguments.beam}
    if arguments.draft is not None or arguments.exit_layer is not None:
        given |= {"speculation.exit_layer": arguments.exit_layer}

    from vall_e.models.checkpoint import load_config

    try:
        sampling = sampling_of(given, load_config(folder).sampling)  # before the weights: a wrong number costs no time
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} cannot be loaded: {error}") from None
    voice = load_voice(arguments, draft=arguments.draft)
    if sampling.rank == "recogniser":
        from vall_e.evaluation.judge import WordJudge

        voice.judge = WordJudge.bundled()
    return voice, sampling


def _speak_one(arguments: argparse.Namespace, voice: Voice, sampling: SamplingConfig, text: str) -> int:
    if arguments.stream:
        return _stream(arguments, voice, sampling, text)
    output = checked_output(arguments)
    name = Path(output).stem
    try:
        with _bar() as progress:
            audio = voice.speak(
                text, arguments.ref_audio, prompt_text=arguments.ref_text, continue_prompt=arguments.continue_ref,
                language=arguments.language, duration=arguments.duration, speed=_speed(arguments),
                sampling=sampling, progress=progress,
            )  # fmt: skip
        if output != STANDARD:
            audio.save(output)
    except (ValueError, OSError) as error:
        tell_error(error, arguments, id=name)
        return 1
    for warning in audio.warnings:
        print(f"vall-e: {warning}", file=sys.stderr)
    if output == STANDARD:
        pour(audio.wav, audio.sample_rate)
    elif arguments.json:
        print(json.dumps({"id": name, "path": output, **audio.as_dict()}, ensure_ascii=False))
    else:
        factor = audio.compute_seconds / max(audio.seconds, 1e-6)
        parts = f", {len(audio.segments)} segments" if len(audio.segments) > 1 else ""
        print(f"{output}: {audio.seconds:.2f} s, {audio.frames} frames{parts}, real-time factor {factor:.2f}")
    return 0


def _stream(arguments: argparse.Namespace, voice: Voice, sampling: SamplingConfig, text: str) -> int:
    from vall_e.audio import play_to

    print(f"vall-e: s16le at {voice.sample_rate} Hz, one channel", file=sys.stderr)
    try:
        chunks = voice.stream(
            text, arguments.ref_audio, language=arguments.language, speed=_speed(arguments), sampling=sampling
        )
        play_to(sys.stdout.buffer, _told(chunks))
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"vall-e: {error}", file=sys.stderr)
        return 1
    return 0


def _speed(arguments: argparse.Namespace) -> float:
    return 1.0 if arguments.speed is None else arguments.speed


def _told(chunks: Iterator[AudioChunk]) -> Iterator[np.ndarray]:
    """The sound of the chunks; their warnings go to the standard error."""
    for chunk in chunks:
        yield chunk.wav
        for warning in chunk.warnings:
            print(f"vall-e: {warning}", file=sys.stderr)


@contextmanager
def _bar() -> Iterator[Callable[[float], None]]:
    """A bar on the standard error where that is a terminal, with the time that is left."""
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1.0, desc="synth", bar_format=form, leave=False, disable=None, file=sys.stderr) as bar:
        yield lambda share: bar.update(max(0.0, share - bar.n))


def _speak_many(arguments: argparse.Namespace, voice: Voice, sampling: SamplingConfig, jobs: list[Job | Result]) -> int:
    from tqdm import tqdm

    from vall_e.jobs import speak

    failed = 0
    results = speak(voice, jobs, sampling, arguments.batch_size)
    for result in tqdm(results, total=len(jobs), unit="job", desc="synth", mininterval=1, file=sys.stderr):
        print(json.dumps(result.as_dict(), ensure_ascii=False), flush=True)
        failed += result.error is not None
    print(f"vall-e: {len(jobs) - failed} of {len(jobs)} jobs spoken into {arguments.out_dir}", file=sys.stderr)
    return 1 if failed else 0
