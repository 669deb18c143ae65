"""DVC as a child process of a flow: its lines in the flow's log, its whole process group ended with the flow."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipelines.process import run_process
from stages.origin import tags_environment

# A cancelled flow has 30 s before Prefect kills it. What a stage writes after a polite signal must fit into these.
GRACE_SECONDS = 20.0
# What DVC advises after every stage, to people at a prompt.
_ADVICE = (
    "To track the changes",
    "git add ",
    "To enable auto staging",
    "dvc config ",
    "Use `dvc push`",
    "Updating lock",
)


class StageFailed(RuntimeError):
    """A stage ended with an error; ``lines`` are the last it said.

    Args:
        stage: the stage, or the experiment with many.
        speaker: a pattern for the name of a stage in a line ``NAME: error: ...``; ``stage`` by default.

    Attributes:
        input_error: the stage said in one line what is wrong with its input: trying again cannot help. Its exit code
            says so as well, but DVC has one of its own.
    """

    def __init__(self, stage: str, code: int, lines: Sequence[str], speaker: str | None = None):
        said = last_said(lines, speaker or re.escape(stage))
        self.stage, self.lines = stage, list(lines[-20:])
        self.input_error = said is not None and said.partition(": ")[2].startswith("error: ")
        super().__init__(said or f"{stage} ended with exit code {code}:\n" + "\n".join(self.lines))


def last_said(lines: Sequence[str], speaker: str = r"\w+") -> str | None:
    """The last line in which a stage says why it ended, ``NAME: error: ...`` (its input is refused) or
    ``NAME: failed: ...``; ``speaker`` is a pattern for its name."""
    says = re.compile(rf"{speaker}: (error|failed): ")
    return next((line for line in reversed(lines) if says.match(line)), None)


def run_dvc(
    words: Sequence[str],
    root: str | Path,
    on_line: Callable[[str], None],
    timeout: float | None = None,
    tags: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run ``dvc WORDS`` in ``root`` with the environment of this interpreter. Returns the exit code and the lines.

    Args:
        on_line: is given each line, without DVC's advice to people.
        timeout: seconds that it may take.
        tags: for the MLflow runs of the stages that DVC starts.

    Raises:
        StepTimeout: it took longer; nothing of it is left running.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}

    def pass_on(line: str) -> None:
        if not line.strip().startswith(_ADVICE):
            on_line(line)

    command = [sys.executable, "-m", "dvc", *words]
    return run_process(
        command, pass_on, cwd=root, env=env | tags_environment(tags or {}), timeout=timeout, grace=GRACE_SECONDS
    )
