"""What all commands share: how wrong usage is told, which voice is meant, how to sample."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    import numpy as np

    from vall_e.decoding import SamplingConfig
    from vall_e.generation.synthesize import Voice

STANDARD = "-"  # the standard input or output in place of a file
OTHER_SOUND = {".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".pcm", ".raw"}  # endings
MODELS = Path("models")
GENERAL = (
    "guidance",
    "guidance_rescale",
    "candidates",
    "rank",
    "retries",
    "max_seconds",
)  # of ``SamplingConfig``, beside ar and nar
SHORT = {"beam.width": "beam", "speculation.exit_layer": "exit-layer"}  # settings → options of other names


class UsageError(Exception):
    """The command cannot be carried out as it was given."""


def tell_error(error: Exception, arguments: argparse.Namespace, **of: str) -> None:
    """What failed to the standard error, and with ``--json`` ``{**of, "error": ...}`` to the standard output."""
    if arguments.json:
        print(json.dumps({**of, "error": str(error)}, ensure_ascii=False), flush=True)
    print(f"vall-e: {error}", file=sys.stderr)


def voice_folder(given: Path | None) -> Path:
    """The folder of a trained voice: ``given``, or the newest below models/. Raises UsageError."""
    from vall_e.jobs import is_model, newest_model

    if given is None:
        folder = newest_model(MODELS)
        if folder is None:
            raise UsageError(f"no trained voice below {MODELS}/: train one with `make demo`, or name one with --model")
        return folder
    if not is_model(given):
        raise UsageError(f"{given} is no trained voice (model.safetensors, config.json and tokenizer.json)")
    return given


def add_voice(parser: argparse.ArgumentParser) -> None:
    """Options that say which voice is loaded, where and how; see ``load_voice``."""
    from vall_e.decoding import FORMATS

    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="a trained voice; by default the newest below models/"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument(
        "--weights",
        choices=FORMATS,
        default="float32",
        help="how weights are kept: 16 bits halve what is read for each frame, 8 bits quarter it (default: float32)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile decoding: the first speech comes half a minute later",
    )


def load_voice(arguments: argparse.Namespace, **options: Any) -> Voice:
    """The voice that the options of ``add_voice`` name; ``options`` are further ones of ``Voice.load``.

    Raises:
        UsageError: it cannot be loaded.
    """
    folder = voice_folder(arguments.model)
    how = {name: getattr(arguments, name) for name in ("device", "weights", "compile")}
    from vall_e.generation.synthesize import Voice

    try:
        return Voice.load(folder, **how, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{folder} cannot be loaded: {error}") from None


def add_output(parser: argparse.ArgumentParser) -> None:
    """``--output``; see ``checked_output``."""
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="wave file to write (default: out.wav); - writes raw samples to the standard output (s16le, one channel), "
        "and their rate is told on the standard error",
    )


def checked_output(arguments: argparse.Namespace) -> str:
    """What ``--output`` says, by default out.wav. Raises UsageError for what no WAV can be written to, and for samples
    and JSON on one stream."""
    output = "out.wav" if arguments.output is None else arguments.output
    if output == STANDARD:
        if arguments.json:
            raise UsageError("--json and -o - both write to the standard output: name a file with -o")
        return output
    path = Path(output)
    if not output or path.is_dir():
        raise UsageError(f"-o {output!r} is a folder, or no name: name a file, as in -o {path / 'out.wav'}")
    if path.exists() and not path.is_file():
        raise UsageError(f"-o {output} is a device, which a file would replace: for raw samples take -o -")
    if path.suffix.lower() in OTHER_SOUND:
        raise UsageError(f"-o {output}: what is written is WAV: name it {path.with_suffix('.wav')}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(f"-o {output}: no file can be written in {above}")
    return output


def pour(wav: np.ndarray, sample_rate: int, full: float = 32767.0) -> None:
    """Raw samples of float [N] to the standard output; ``full`` as in ``vall_e.audio.to_pcm``."""
    from vall_e.audio import to_pcm

    told = f"{len(wav) / sample_rate:.2f} s of s16le at {sample_rate} Hz, one channel"
    print(f"vall-e: {told}", file=sys.stderr)
    sys.stdout.buffer.write(to_pcm(wav, full).tobytes())
    sys.stdout.buffer.flush()


def add_seed(parser: argparse.ArgumentParser) -> None:
    """``--seed``; see ``checked_seed``."""
    parser.add_argument("--seed", type=int, help="the same seed gives the same speech (default: the voice's)")


def checked_seed(arguments: argparse.Namespace) -> int | None:
    """What ``--seed`` says. Raises UsageError for a number that seeds nothing."""
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise UsageError(f"--seed must be between 0 and 2^63 - 1, not {arguments.seed}")
    return arguments.seed


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options for the settings of ``sampling.ar`` (with and without ``ar-``), ``nar``, ``long_text`` and the others."""
    groups = {
        "ar": parser.add_argument_group("drawing", "each by default as the voice has it"),
        "nar": parser.add_argument_group("drawing the levels above, where a pass of its own adds them"),
        "long_text": parser.add_argument_group("long texts"),
    }
    for key, field in _settings():
        section, _, name = key.rpartition(".")
        flags = [f"--{key.replace('.', '-')}", *([f"--{name}"] if section == "ar" else [])]
        flags = [flag.replace("_", "-") for flag in reversed(flags)]
        form = _form(field.annotation)
        groups[section or "ar"].add_argument(*flags, dest=key, default=None, help=field.description, **form)


def sampling_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the options of ``add_sampling`` were given for: ``{"ar.top_k": 5, "guidance": 0.0}``."""
    return {key: value for key, _ in _settings() if (value := getattr(arguments, key)) is not None}


def sampling_of(given: dict[str, Any], base: SamplingConfig | None = None) -> SamplingConfig:
    """``base`` (the defaults) with the settings in ``given`` put over it, whose keys are as in ``sampling_given``.

    Raises:
        UsageError: naming the option that is wrong.
    """
    from vall_e.decoding import SamplingConfig, SettingError

    try:
        return (base or SamplingConfig()).with_(**given)
    except SettingError as error:
        option = SHORT.get(error.key, error.key.removeprefix("ar.").replace(".", "-").replace("_", "-"))
        reason = f"--{option} {error.value}: {error.reason}" if error.key in given else error.reason
        raise UsageError(reason) from None


def _settings() -> Iterator[tuple[str, Any]]:
    """Keys and pydantic's fields of all settings that are options."""
    from vall_e.decoding import LevelParams, LongTextConfig, SamplingConfig, SamplingParams

    yield from ((f"ar.{name}", field) for name, field in SamplingParams.model_fields.items())
    yield from ((name, SamplingConfig.model_fields[name]) for name in GENERAL)
    yield from ((f"nar.{name}", field) for name, field in LevelParams.model_fields.items())
    yield from ((f"long_text.{name}", field) for name, field in LongTextConfig.model_fields.items())


def _form(annotation: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return _form(inner[0])
    if origin is Literal:
        return {"type": type(inner[0]), "choices": inner}
    if origin is tuple:
        return {"type": int, "nargs": "*", "metavar": "CODE"}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if annotation in (int, float):
        return {"type": annotation, "metavar": "X"}
    return _form(inner[0])  # Annotated
