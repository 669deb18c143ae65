"""Profiles: files in ``conf/`` and ``conf/presets/`` that override parts of ``params.yaml``.

``python -m pipelines.profile digits | xargs dvc exp run`` runs a profile as a DVC experiment, without touching the
committed parameters; ``python -m pipelines.repro --profile digits`` writes them into ``params.yaml`` and runs.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vall_e.config import ConfigError, Params, merge, parse_params, parse_yaml, read_yaml
from vall_e.corpus.work import write_text
from vall_e.profiles import profile_files

DEMO = "demo"


def _yaml() -> YAML:
    style = YAML()
    style.preserve_quotes = True
    style.width = 4096
    style.indent(mapping=2, sequence=4, offset=2)
    style.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return style


def committed_params(root: Path) -> str:
    """``params.yaml`` of the last commit, so that profiles do not pile up; the file itself where there is no commit."""
    done = subprocess.run(
        ["git", "show", "HEAD:./params.yaml"], cwd=root, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    if done.returncode == 0:
        return done.stdout
    return (root / "params.yaml").read_text(encoding="utf-8")


def profile_overrides(root: Path, name: str) -> dict[str, Any]:
    """What a profile changes; nothing for ``demo``. ``A+B`` is B over A, and is named so.

    Raises:
        ConfigError: no such profile; the message names those there are.
    """
    files, out = profile_files(root), {}
    for part in name.split("+"):
        if part not in (DEMO, *files):
            raise ConfigError(f"no profile {part!r}: there are {', '.join([DEMO, *files])}")
        out = merge(out, {} if part == DEMO else read_yaml(files[part]))
    return out | {"profile": name} if "+" in name else out


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """``["train.max_steps=10"]`` → ``{"train": {"max_steps": 10}}``; the value is read as YAML."""
    out: dict[str, Any] = {}
    for setting in settings:
        out = merge(out, nested(*read_setting(setting, f"--set {setting!r}", "value")))
    return out


def read_setting(setting: str, said: str, form: str) -> tuple[str, Any]:
    """``section.key=YAML`` as the key and its value.

    Raises:
        ConfigError: it is none; the message begins with ``said`` and shows the ``form`` of the value.
    """
    key, equals, text = setting.partition("=")
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise ConfigError(f"{said}: expected section.key={form}")
    try:
        return key, parse_yaml(text)
    except YAMLError as error:
        raise ConfigError(f"{said}: what is behind the = is not YAML: {error}") from None


def nested(key: str, value: Any) -> dict[str, Any]:
    """``("train.max_steps", 10)`` → ``{"train": {"max_steps": 10}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def overridden(text: str, override: Mapping[str, Any]) -> tuple[str, Params]:
    """``params.yaml`` with values put over it and its comments kept, and the same validated.

    Raises:
        ConfigError: a key or a value is not valid.
    """
    style = _yaml()
    document = style.load(text) or {}
    params = parse_params(merge(parse_yaml(text) or {}, dict(override)), "the merged parameters")
    _put(document, override)
    buffer = io.StringIO()
    style.dump(document, buffer)
    return buffer.getvalue(), params


def _put(document: dict, override: Mapping[str, Any]) -> None:
    for key, value in override.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), dict):
            _put(document[key], value)
        else:
            document[key] = value


def prepare(root: Path, profile: str | None, settings: Iterable[str]) -> tuple[str, Params]:
    """The text of ``params.yaml`` for a run, and the validated parameters. Nothing is written.

    Raises:
        ConfigError: an unknown profile, key or value.
    """
    override = parse_settings(settings)
    if profile is None:
        path = root / "params.yaml"
        if not path.is_file():
            raise ConfigError(f"{path.resolve()}: no such file (run from the project's folder)")
        return overridden(path.read_text(encoding="utf-8"), override)
    return overridden(committed_params(root), merge(profile_overrides(root, profile), override))


def write_params(root: Path, text: str) -> None:
    """Replace ``params.yaml`` atomically; a file that already says the same is left alone."""
    path = root / "params.yaml"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    write_text(path, text)


def settings_for_dvc(override: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Overrides as ``key=value`` in the grammar of ``dvc exp run -S`` (Hydra's)."""
    out: list[str] = []
    for key, value in override.items():
        if isinstance(value, Mapping) and key != "join":  # train.join is null in params.yaml: it is set as a whole
            out += settings_for_dvc(value, f"{prefix}{key}.")
        else:
            out.append(f"{prefix}{key}={_hydra(value)}")
    return out


def _hydra(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_hydra(item) for item in value) + "]"
    if isinstance(value, str):
        # A backslash is one, unless a quote follows those that stand together.
        return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"
    return json.dumps(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a profile as arguments for ``dvc exp run``, quoted for ``xargs`` and for the shell's ``eval``."""
    import shlex

    parser = argparse.ArgumentParser(
        prog="python -m pipelines.profile",
        description="Print a profile of conf/ as -S arguments: python -m pipelines.profile digits | xargs dvc exp run",
    )
    parser.add_argument("profile", help="name of a file in conf/ or conf/presets/, without .yaml")
    args = parser.parse_args(argv)
    try:
        settings = settings_for_dvc(profile_overrides(Path("."), args.profile))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(" ".join(f"-S {shlex.quote(setting)}" for setting in settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
