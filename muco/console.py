"""What a run prints: text of any origin, progress bars and tables of scores."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from muco.core.printable import printable

if TYPE_CHECKING:
    from rich.progress import Task

Item = TypeVar("Item")

_PIPE_WIDTH = 100_000
"""Characters of a line where the output is not a terminal: rows of tables stay whole."""
_SECONDS_BETWEEN_LINES = 30.0
"""Between two lines of progress where the output is not a terminal."""


class Terminal(Console):
    """Print text as it is: no markup, no highlights, and control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)
        if not self.is_terminal and "width" not in options:
            self.width = _PIPE_WIDTH

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; a line of text is not wrapped, a table is fitted to the terminal, if there is one."""
        is_text = all(isinstance(each, str) for each in objects)
        super().print(*objects, **{"soft_wrap": is_text, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text as rich prints it; every string goes through here, those of tables too."""
        return super().render_str(printable(text), **options)


class JsonTerminal(Terminal):
    """Print one JSON object a line, for other programs: an event by name with its values, or a message."""

    def __init__(self, **options: Any) -> None:
        super().__init__(force_terminal=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print text, or a table as text, as the event `message`."""
        with self.capture() as captured:
            super().print(*objects, **{"soft_wrap": True, **options})
        self.event("message", {"text": captured.get().rstrip("\n")})

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        """Print an event with the time and its values."""
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": name, "time": moment, **values})
        super().print(line, soft_wrap=True)


def plain_table(*columns: str) -> Table:
    """Return a table without lines; named columns are not wrapped, without names there is no heading."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(columns))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def print_record(console: Console, event: str, values: Mapping[str, Any], text: str) -> None:
    """Print an event: its text, or its values where the console prints JSON."""
    if isinstance(console, JsonTerminal):
        console.event(event, values)
    else:
        console.print(text)


def print_metrics(metrics: dict[str, float], console: Console) -> None:
    """Print averages and tasks by name."""
    if isinstance(console, JsonTerminal):
        console.event("metrics", metrics)
        return
    for name, value in metrics.items():
        console.print(f"{name:<36} {value:.3f}")


def progress_bar(items: Iterable[Item], number: int, what: str, /, console: Console) -> Iterable[Item]:
    """Yield the items while a bar shows their progress; where no terminal is, print one line first."""
    if not number:
        return items
    if not console.is_terminal:
        console.print(f"{what}: {number:,}")
        return items
    from rich.markup import escape
    from rich.progress import track

    description = escape(printable(what))
    return track(items, description=description, total=number, console=console, transient=True)


def items_bar(ranges: Iterable[range], number: int, what: str, console: Console) -> Iterator[range]:
    """Yield ranges of items while a bar, or a line now and then, shows their number and items a second."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    start = last = time.monotonic()
    done = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=number)
        for items in ranges:
            yield items
            progress.advance(bar, len(items))
            done += len(items)
            now = time.monotonic()
            if not console.is_terminal and now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                console.print(f"{what}: {done:,} of {number:,}, {done / (now - start):,.1f}/s")


def quiet_libraries() -> None:
    """Turn off the progress bars and warnings of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
