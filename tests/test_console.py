"""What is printed: foreign text cannot steer a terminal."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from muco.console import Terminal, print_metrics, progress_bar
from muco.core.printable import printable

FOREIGN = "a\x1b]0;owned\x07\x1b[2Jb\r\x9b31m\u202e[red]c[/x] \ud800\té\n2"
SHOWN = r"a\x1b]0;owned\x07\x1b[2Jb\r\x9b31m\u202e[red]c[/x] \ud800" + "\té\n2"


@pytest.fixture
def terminal():
    return Terminal(file=io.StringIO(), force_terminal=True, width=200, color_system="truecolor")


def printed(terminal: Terminal) -> str:
    return terminal.file.getvalue()


def test_control_characters_become_escapes():
    assert printable(FOREIGN) == SHOWN


def print_table(terminal: Terminal) -> None:
    table = Table(FOREIGN, box=None)
    table.add_row(FOREIGN)
    terminal.print(table)


@pytest.mark.parametrize(
    "show",
    [
        lambda terminal: terminal.print(FOREIGN, style="red", soft_wrap=True),
        lambda terminal: terminal.print("a", FOREIGN, sep=" "),
        print_table,
        lambda terminal: print_metrics({FOREIGN: 0.5}, terminal),
        lambda terminal: list(progress_bar([1], 1, FOREIGN, terminal)),
    ],
    ids=["error", "print", "table", "scores", "bar"],
)
def test_no_output_carries_a_foreign_escape(terminal, show):
    show(terminal)
    assert r"\x1b]0;owned\x07\x1b[2Jb\r\x9b31m\u202e[red]c[/x]" in printed(terminal)
    assert "\x1b]0" not in printed(terminal)
    assert "\x1b[2J" not in printed(terminal)


def test_a_table_keeps_its_lines_where_no_terminal_is():
    pipe = Terminal(file=io.StringIO())
    table = Table("name", box=None, show_header=False)
    table.add_row("word " * 100)
    pipe.print(table)
    assert len(printed(pipe).splitlines()) == 1
