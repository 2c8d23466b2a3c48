"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from muco.console import Terminal, make_terminal
from muco.core.errors import MucoError

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
LogFormat = Annotated[str, typer.Option("--log-format", help="text, or json: one object a line.")]


def console_of(quiet: bool, log_format: str) -> Terminal:
    """Return where a command with these options prints; raise MucoError for an unknown format."""
    if log_format not in ("text", "json"):
        raise MucoError(f"--log-format {log_format}: choose text or json")
    chosen: Any = log_format
    return make_terminal(quiet=quiet, log_format=chosen)
