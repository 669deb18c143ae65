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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vall_e.model_cli import add_model
from vall_e.transcribe_cli import add_transcribe
from vall_e.usage import MODELS, UsageError, sampling_of, voice_folder

if TYPE_CHECKING:
    from vall_e.config import SamplingConfig
    from vall_e.generation.synthesize import Voice
    from vall_e.jobs import Job, Result

SAMPLING = {
    "temperature": (float, "randomness of the codes; 0 always takes the likeliest"),
    "top_k": (int, "draw from the K likeliest codes; 0 from all"),
    "top_p": (float, "draw from the likeliest codes that together have this probability"),
    "repetition_penalty": (float, "above 1 makes codes of the last frames less likely"),
    "guidance": (float, "how much more the text counts; 0 is plain decoding"),
    "candidates": (int, "utterances drawn for each text, of which the best is kept"),
    "max_seconds": (float, "length cap of an utterance"),
}


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
    _add_synth(commands)
    doctor = commands.add_parser("doctor", help="what is installed, what is missing, how to get it")
    doctor.add_argument("--json", action="store_true", help="one JSON object")
    doctor.set_defaults(run=_doctor)
    add_model(commands)
    add_transcribe(commands)
    return parser


def _add_synth(commands: Any) -> None:
    synth = commands.add_parser(
        "synth",
        help="speak a text, or a file of texts, in the voice of a recording",
        description="Speak a text in the voice of a reference recording of any format and rate.",
        epilog='A line of --batch: {"id": "a", "text": "seven", "ref_audio": "me.wav", "ref_text": "...", "seed": 1, '
        '"continue_ref": false, "language": "en-us"} (all after ref_audio may be left out); the result is DIR/a.wav '
        "and a JSON line on the standard output.",
    )
    synth.add_argument("--model", type=Path, metavar="DIR", help="a trained voice; by default the newest below models/")
    what = synth.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", help="what to say")
    what.add_argument("--batch", type=Path, metavar="JOBS", help="a JSON Lines file with one job a line")
    synth.add_argument("--ref-audio", type=Path, metavar="FILE", help="a recording of the voice")
    synth.add_argument("--ref-text", help="what the recording says; only --continue-ref needs it")
    synth.add_argument(
        "--continue-ref",
        action="store_true",
        help="go on from the recording as if it were the beginning of the speech, instead of only imitating its voice",
    )
    synth.add_argument("--language", metavar="NAME", help="espeak-ng language of the text (default: the voice's)")
    synth.add_argument("-o", "--output", type=Path, metavar="FILE", help="wave file to write (default: out.wav)")
    synth.add_argument("--out-dir", type=Path, metavar="DIR", help="with --batch: folder of the wave files")
    synth.add_argument("--batch-size", type=int, default=16, metavar="N", help="jobs spoken at once (default: 16)")
    synth.add_argument("--seed", type=int, help="the same seed gives the same speech (default: the model's)")
    for name, (kind, about) in SAMPLING.items():
        flag = f"--{name.replace('_', '-')}"
        synth.add_argument(flag, type=kind, metavar="X", help=f"{about} (default: the voice's)")
    synth.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    synth.add_argument("--json", action="store_true", help="with --text: print the result as JSON")
    synth.set_defaults(run=_synth)


def _synth(arguments: argparse.Namespace) -> int:
    jobs = _jobs(arguments)
    voice, sampling = _voice(arguments)
    return (_speak_many if arguments.batch else _speak_one)(arguments, voice, sampling, jobs)


def _jobs(arguments: argparse.Namespace) -> list[Job | Result]:
    from vall_e.jobs import Job, read_jobs

    if arguments.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise UsageError(f"--seed must be between 0 and 2^63 - 1, not {arguments.seed}")
    if arguments.batch is None:
        if arguments.out_dir is not None:
            raise UsageError("--out-dir belongs to --batch; with --text name the file with -o")
        if arguments.ref_audio is None:
            raise UsageError("--text needs --ref-audio, a recording of the voice")
        if not arguments.text.strip():
            raise UsageError("--text is empty")
        output = arguments.output or Path("out.wav")
        return [
            Job(
                output.stem,
                arguments.text,
                arguments.ref_audio,
                output,
                arguments.ref_text,
                arguments.seed,
                arguments.continue_ref,
                arguments.language,
            )
        ]
    for name in ("ref_audio", "ref_text", "language", "output"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} belongs to --text; with --batch it stands in the jobs file")
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
    given = {name: value for name in (*SAMPLING, "seed") if (value := getattr(arguments, name)) is not None}
    sampling_of(given)  # before the model is loaded: a wrong number costs no time
    folder = voice_folder(arguments.model)

    from vall_e.generation.synthesize import Voice

    try:
        voice = Voice.load(folder, device=arguments.device)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{folder} cannot be loaded: {error}") from None
    return voice, voice.config.sampling.model_copy(update=given)


def _speak_one(arguments: argparse.Namespace, voice: Voice, sampling: SamplingConfig, jobs: list[Job | Result]) -> int:
    from vall_e.jobs import speak

    (result,) = speak(voice, jobs, sampling)
    if arguments.json:
        print(json.dumps(result.as_dict(), ensure_ascii=False))
    if result.error is not None:
        print(f"vall-e: {result.error}", file=sys.stderr)
        return 1
    for warning in result.warnings:
        print(f"vall-e: {warning}", file=sys.stderr)
    if not arguments.json:
        factor = result.compute_seconds / max(result.seconds, 1e-6)
        print(f"{result.path}: {result.seconds:.2f} s, {result.frames} frames, real-time factor {factor:.2f}")
    return 0


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


def _doctor(arguments: argparse.Namespace) -> int:
    from vall_e.doctor import able, as_dict, examine, report

    findings = examine(MODELS)
    print(json.dumps(as_dict(findings), indent=2) if arguments.json else report(findings))
    return 0 if able(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
