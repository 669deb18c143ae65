from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from pipelines.process import StepTimeout, run_process


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc").is_dir()


def test_lines_and_exit_code_come_back_in_order():
    seen: list[str] = []
    script = "import sys; print('one'); print('two', file=sys.stderr, flush=True); print('three'); sys.exit(3)"
    code, lines = run_process([sys.executable, "-u", "-c", script], seen.append)
    assert code == 3
    assert lines == seen == ["one", "two", "three"]


def test_a_progress_bar_does_not_flood_the_log():
    script = "import sys\nfor i in range(1000): sys.stdout.write(f'\\r{i}/1000')\nprint('\\ndone')"
    _, lines = run_process([sys.executable, "-c", script], lambda line: None)
    assert lines[-1] == "done"
    assert len(lines) <= 4


def test_a_timeout_ends_the_whole_process_group(tmp_path):
    pid_file = tmp_path / "pid"
    script = (
        "import subprocess, sys, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # the polite signal is not enough
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    started = time.monotonic()
    with pytest.raises(StepTimeout, match="longer than 3 s"):
        run_process([sys.executable, "-c", script], lambda line: None, timeout=3, grace=0.5)
    assert time.monotonic() - started < 10
    assert not _alive(int(pid_file.read_text()))


def test_an_interrupt_ends_the_child_and_is_passed_on(tmp_path):
    pid_file = tmp_path / "pid"
    script = (
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n"
        "print('up', flush=True); time.sleep(600)"
    )

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_process([sys.executable, "-c", script], interrupt)
    assert not _alive(int(pid_file.read_text()))
