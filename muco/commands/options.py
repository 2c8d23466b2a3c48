"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from muco.console import JsonTerminal, Terminal

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option("--log-format", help="json: one object a line, for other programs.")
]


def console_of(quiet: bool, log_format: LogFormat) -> Terminal:
    """Return where a command with these options prints: lines of text or of JSON, or nothing but errors."""
    return JsonTerminal(quiet=quiet) if log_format == "json" else Terminal(quiet=quiet)
