"""A new voice out of a few minutes of recordings: ``python -m pipelines.adapt RECORDINGS --out voices/NAME``.

The whole pipeline runs, in a workspace of its own below ``.work/adapt``: a DVC project with the code, ``params.yaml``
with the profile ``finetune`` over it, and a copy of the base voice, whose model, codec, tokenizer and reading of texts
are kept. A run that was stopped goes on when the same command is given again. Its MLflow runs are with all the others.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines.command import last_said
from pipelines.process import run_process
from pipelines.profile import nested, overridden, parse_settings, profile_overrides, write_params
from pipelines.watched import check_watched
from stages.origin import tags_environment
from vall_e.config import ConfigError, merge, parse_yaml
from vall_e.corpus.work import digest_of, replace_folder
from vall_e.registry import model_name

CODE = ("conf", "stages", "vall_e")
FILES = ("dvc.yaml", ".dvcignore")
PROFILE = "finetune"
# Parameters that may name a file or a folder, relative to the project.
PATHS = (
    "transcribe.recogniser.model",
    "encode.mixtures.noise",
    "encode.mixtures.rirs",
    "similar.voice",
    "train.distill.voice",
    "evaluate.testset",
    "evaluate.spellings",
    "evaluate.recogniser.model",
    "score.speaker_weights",
    "score.utmos",
)
_ADVICE = ("Use `dvc push`", "To track the changes", "git add ", "To enable auto staging", "dvc config ")


class AdaptError(RuntimeError):
    """The pipeline of a new voice ended with an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stages are ended as well
    root = Path(".").resolve()
    workspace = root / ".work/adapt" / args.out.name
    workspace.parent.mkdir(parents=True, exist_ok=True)
    try:
        if args.out.exists() and not (args.out / "config.json").is_file():
            raise ConfigError(f"--out {args.out} is there and no voice: name another folder")
        with FileLock(workspace.with_name(f"{workspace.name}.lock"), timeout=0):
            prepare(root, workspace, args.recordings, args.voice, args.profile, args.set)
            if not args.dry_run:
                run(workspace)
                publish(workspace, args.out)
    except Timeout:
        print(f"error: another run makes {args.out.name}: wait for it, or take another name", file=sys.stderr)
        return 1
    except (ValueError, OSError, AdaptError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"prepared {workspace}" if args.dry_run else _how_to_speak(args.out, args.recordings))
    return 0


def prepare(
    root: Path, workspace: Path, recordings: Path, voice: str, profile: str, settings: Sequence[str] = ()
) -> None:
    """Make ``workspace`` a DVC project that fine-tunes ``voice`` on ``recordings``; what it has done before stays.

    Args:
        root: the project's folder, whose ``params.yaml`` the profile is put over.
        voice: a voice's folder, or ``models:/NAME@ALIAS`` of MLflow's registry.
        settings: ``section.key=value``, over everything.

    Raises:
        ConfigError: no recordings, or parameters that are not valid.
        ValueError: no such voice.
    """
    if not recordings.exists():
        raise ConfigError(f"{recordings}: no such folder of recordings")
    check_watched(recordings)
    workspace.mkdir(parents=True, exist_ok=True)
    folder = _voice(root, voice, settings)
    base = workspace / "models" / f"base-{digest_of(folder)[:12]}"  # another voice is another folder, which DVC sees
    if not base.is_dir():
        fresh = base.with_name(f".{base.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(folder, fresh)
        replace_folder(fresh, base)
    kept = of_voice(base, base.relative_to(workspace))
    uri, experiment = tracking_of(root)
    here = {
        "ingest": {"source": "folder", "path": recordings.resolve().as_posix(), "layout": "auto", "pattern": None},
        # one of its own: it would be held against other people's
        "registry": {"name": model_name(experiment, workspace.name)},
        "tracking": {"uri": uri},
    }
    from_profile, text = profile_overrides(root, profile), (root / "params.yaml").read_text(encoding="utf-8")
    override = merge(merge(merge(from_profile, kept), here), parse_settings(settings))
    override = merge(override, found_from_afar(root, merge(parse_yaml(text), override)))
    if "tasks" not in parse_settings(settings).get("model", {}):
        override = merge(override, _learnable(merge(parse_yaml(text), override)))
    _, params = overridden(text, override)
    if params.train.join is not None:  # strings of full length from the first step on: the base can speak them
        override = merge({"train": {"join": {"curriculum_steps": 0}}}, override)
    text, _ = overridden(text, override)
    write_params(workspace, text)
    copy_code(root, workspace)


def copy_code(root: Path, workspace: Path) -> None:
    """Give a workspace the pipeline and the code as they are in the project now."""
    for name in CODE:
        shutil.rmtree(workspace / name, ignore_errors=True)
        shutil.copytree(root / name, workspace / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(root / name, workspace / name)


def of_voice(folder: Path, named: Path) -> dict[str, Any]:
    """The parameters that must be as in the voice in ``folder``, which the pipeline finds at ``named``."""
    from vall_e.models.checkpoint import load_config

    config = load_config(folder).model_dump(mode="json")
    text = {key: config[key] for key in ("language", "with_stress", "words_apart")}
    edges = ("loudness_lufs", "trim_db", "trim_margin_seconds")
    return {
        "ingest": {"language": config["language"]},
        "phonemize": text | {"tokenizer": (named / "tokenizer.json").as_posix()},
        "codec": config["codec"] | {"weights": (named / "codec").as_posix()},
        "encode": {key: config["encode"][key] for key in edges},
        "model": config["model"] | {"lora": None, "init_from": None},
        "train": {"init_from": named.as_posix()},
        "sampling": config["sampling"],
    }


def found_from_afar(root: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Absolute paths for those of the parameters ``raw`` that the workspace could not find."""
    found: dict[str, Any] = {}
    for key in PATHS:
        value: Any = raw
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and (root / value).exists():
            found = merge(found, nested(key, (root / value).resolve().as_posix()))
    return found


def _learnable(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks of the base voice that can be trained: those of mixtures only with ``encode.mixtures``."""
    from vall_e.tasks import TASKS

    tasks = raw["model"]["tasks"]
    if raw.get("encode", {}).get("mixtures") is not None:
        return {}
    left = [task for task in tasks if task not in TASKS or TASKS[task].mixture is None]
    if dropped := [task for task in tasks if task not in left]:
        print(f"not trained without encode.mixtures: {', '.join(dropped)}", file=sys.stderr)
    return {"model": {"tasks": left or ["tts"]}}


def run(workspace: Path, cache: Path | None = None, tags: Mapping[str, str] | None = None) -> None:
    """``dvc repro`` in the workspace, its lines on stdout.

    Args:
        cache: of another DVC project, to share.
        tags: for the MLflow runs of the stages.

    Raises:
        AdaptError: a stage failed, with what it said.
    """
    binaries = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONUNBUFFERED": "1"}
    env["DVC_NO_ANALYTICS"] = "1"
    dvc = [sys.executable, "-m", "dvc"]
    commands = [[*dvc, "init", "--quiet", "--no-scm"]] if not (workspace / ".dvc").is_dir() else []
    if cache is not None:
        commands.append([*dvc, "cache", "dir", "--quiet", "--local", str(cache)])

    def show(line: str) -> None:
        if not line.strip().startswith(_ADVICE):
            print(line, flush=True)

    for command in [*commands, [*dvc, "repro"]]:
        code, lines = run_process(command, show, cwd=workspace, env=env | tags_environment(tags or {}))
        if code:
            said = last_said(lines) or "\n".join(lines[-5:])
            raise AdaptError(f"{said}\nMend it and give the same command again: what is done stays in {workspace}")


def publish(workspace: Path, out: Path) -> None:
    """Copy the voice to ``out``, its report below it; ``out`` appears whole or not at all."""
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(workspace / "models/voice", fresh)
    shutil.copytree(workspace / "report", fresh / "report")
    replace_folder(fresh, out)


def _voice(root: Path, voice: str, settings: Sequence[str]) -> Path:
    from stages.fetch import fetch, is_registered
    from vall_e.config import TrackingConfig, read_yaml

    if not is_registered(voice):
        return root / voice
    raw = merge(read_yaml(root / "params.yaml"), parse_settings(settings)).get("tracking", {})
    return fetch(voice, TrackingConfig(**raw), root)


def tracking_of(root: Path) -> tuple[str, str]:
    """The project's own store, so that the runs of all voices are in one place, and its experiment."""
    from stages.tracking import store_uri
    from vall_e.config import load_params

    tracking = load_params(root / "params.yaml").tracking
    return store_uri(tracking, root), tracking.experiment


def _how_to_speak(out: Path, recordings: Path) -> str:
    return (
        f"{out}: the voice · {out}/report/index.html: how it sounds, beside the recordings\n"
        f'vall-e synth --model {out} --text "..." --ref-audio {recordings}/ONE_OF_THEM.wav -o out.wav'
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.adapt", description=__doc__)
    parser.add_argument("recordings", type=Path, help="folder of recordings of one speaker, with texts or without")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new voice, such as voices/anna")
    parser.add_argument("--voice", default="models/voice", help="to start from: a folder, or models:/NAME@ALIAS")
    parser.add_argument("--profile", default=PROFILE, help=f"of conf/, put over params.yaml (default: {PROFILE})")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. train.max_steps=200")
    parser.add_argument("--dry-run", action="store_true", help="make the workspace and check everything; run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
