"""The commands `muco data`: prepare, download, index, check, show."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from muco.core.errors import MucoError

if TYPE_CHECKING:
    from muco.data.convert import Conversion, Show

app = typer.Typer(no_args_is_help=True, help="Make, check and show training data.")
make_app = typer.Typer(no_args_is_help=True, help="Make shards of data that muco draws itself.")
app.add_typer(make_app, name="make")

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the source. Repeatable."),
]
To = Annotated[Path, typer.Option("--to", help="The folder to make.")]


@make_app.command("scenes")
def make_scenes(to: To, settings: Settings = None) -> None:
    """Draw scenes and write them as shards; --set num_samples=1000 and the source's other settings."""
    from muco.core.errors import DataError
    from muco.data.make import conversion_of

    if to.exists():
        raise DataError(f"{to} exists; name a folder to be made")
    _write(conversion_of("scenes", to, settings or []), "local", 0, Console())


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="m3t, mmeb, mbeir, pairs, or a source of a plugin.")],
    to: To,
    path: Annotated[Path | None, typer.Option("--from", help="Where the outside data set lies.")] = None,
    settings: Settings = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images; 0 for none.")] = 2,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Reduce larger images; by default all are copied as they are.")
    ] = None,
    max_skipped_share: Annotated[
        float, typer.Option(min=0, max=1, help="Stop when a larger share of the records makes no sample.")
    ] = 0.01,
    shard_mib: Annotated[int, typer.Option(min=1, help="Size at which a shard is closed.")] = 256,
    repeat_images: Annotated[
        bool, typer.Option("--repeat-images", help="Write an image into every sample that shows it.")
    ] = False,
) -> None:
    """Turn an outside data set into shards; started again after a kill, it goes on where it stopped."""
    from muco.data.convert import Layout
    from muco.data.make import conversion_of

    if engine not in ("local", "ray"):
        raise MucoError(f"--engine {engine}: choose local or ray")
    layout = Layout(shard_mib * 2**20, max_pixels, repeat_images)
    conversion = conversion_of(
        source, to, settings or [], path=path, layout=layout, max_skipped_share=max_skipped_share
    )
    console = Console()
    if not to.exists():
        _foretell(conversion, console)
    _write(conversion, engine, workers, console)


def _foretell(conversion: Conversion, console: Console) -> None:
    """Say what will be written, and stop where the disk is too small for it."""
    from muco.data.convert import gib

    need = conversion.need(_show(console))
    told = f"{len(conversion.source):,} records, {gib(need.num_bytes)} of shards at most"
    if need.num_missing:
        told += f"; {need.num_missing:,} records lack an image"
    console.print(told, highlight=False, soft_wrap=True)
    conversion.check_disk(need)


def _write(conversion: Conversion, engine: Any, workers: int, console: Console) -> None:
    from muco.data.convert import SKIPPED_FILE

    made = conversion.run(engine=engine, workers=workers, show=_show(console))
    console.print(f"{made.num_samples:,} samples in {conversion.folder}", highlight=False, soft_wrap=True)
    if made.num_skipped:
        where = conversion.folder / SKIPPED_FILE
        console.print(f"{made.num_skipped:,} records left out, named in {where}", soft_wrap=True)


def _show(console: Console) -> Show:
    """Return what shows items go by: a bar on a terminal, else a line."""
    from rich.progress import track

    def show(items: Iterable[Any], number: int, what: str) -> Iterable[Any]:
        if not console.is_terminal:
            console.print(f"{what}: {number:,}", highlight=False)
            return items
        return track(items, description=what, total=number, console=console, transient=True)

    return show
