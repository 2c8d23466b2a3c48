"""What a run prints: progress bars and tables of scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import track


def tell(metrics: dict[str, float], console: Console) -> None:
    """Print averages and tasks by name."""
    for name, value in metrics.items():
        console.print(f"{name:<36} {value:.3f}", highlight=False)


def progress_bar(items: Iterable[Any], number: int, what: str, console: Console) -> Iterable[Any]:
    """Show a bar on a terminal, else a line at the start."""
    if not number:
        return items
    if not console.is_terminal:
        console.print(f"{what}: {number:,}", highlight=False)
        return items
    return track(items, description=what, total=number, console=console, transient=True)
