"""Write the page of all commands when the site is built, from the commands themselves."""

from __future__ import annotations

from typing import Any

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the description of every command in place of the mark."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


def commands() -> str:
    """Return the arguments and options of every command, as Markdown."""
    import click
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from muco.commands.main import app

    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=click.Context(command, info_name="muco"), name="muco")
    return text.partition("\n## ")[2].join(("## ", ""))
