"""Prefect as the project uses it: its files in the project, no analytics, a temporary API where none is configured."""

from __future__ import annotations

import os
from pathlib import Path


def use_local_prefect() -> None:
    """Set what Prefect reads from the environment when it is imported; a value that is already set stays."""
    if "PREFECT_HOME" not in os.environ:
        home = Path.cwd() / ".work" / "prefect"
        home.mkdir(parents=True, exist_ok=True)  # Prefect makes no parents
        os.environ["PREFECT_HOME"] = str(home)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    # Beside a training that has all cores, its SQLite answers late, and the server then says 500.
    os.environ.setdefault("PREFECT_SERVER_DATABASE_TIMEOUT", "60")
    os.environ.setdefault("PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT", "60")
    os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
    os.environ.setdefault("DO_NOT_TRACK", "1")
