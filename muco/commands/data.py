"""The commands `muco data`: prepare, download, index, check, show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from muco.core.errors import MucoError

if TYPE_CHECKING:
    from muco.core.source import Source
    from muco.data.prepare.convert import Conversion, ShowProgress

app = typer.Typer(no_args_is_help=True, help="Make, check and show training data.")
make_app = typer.Typer(no_args_is_help=True, help="Make shards of data that muco draws itself.")
app.add_typer(make_app, name="make")

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the source. Repeatable."),
]
MaxShorterSide = Annotated[
    int | None, typer.Option(min=1, help="Reduce images to a shorter side of so many pixels.")
]
To = Annotated[Path, typer.Option("--to", help="The folder to make.")]


@make_app.command("scenes")
def make_scenes(to: To, settings: Settings = None) -> None:
    """Draw scenes and write them as shards; --set num_samples=1000 and the source's other settings."""
    from muco.core.errors import DataError
    from muco.data.prepare.from_cli import conversion_of

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
    max_shorter_side: MaxShorterSide = None,
    max_skipped_share: Annotated[
        float, typer.Option(min=0, max=1, help="Stop when a larger share of the records makes no sample.")
    ] = 0.01,
    shard_mib: Annotated[int, typer.Option(min=1, help="Size at which a shard is closed.")] = 256,
    repeat_images: Annotated[
        bool, typer.Option("--repeat-images", help="Write an image into every sample that shows it.")
    ] = False,
) -> None:
    """Turn an outside data set into shards; started again after a kill, it goes on where it stopped."""
    from muco.data.prepare.convert import Layout
    from muco.data.prepare.from_cli import conversion_of

    if engine not in ("local", "ray"):
        raise MucoError(f"--engine {engine}: choose local or ray")
    layout = Layout(shard_mib * 2**20, max_pixels, max_shorter_side, repeat_images)
    conversion = conversion_of(
        source, to, settings or [], path=path, layout=layout, max_skipped_share=max_skipped_share
    )
    console = Console()
    if not to.exists():
        _foretell(conversion, console)
    _write(conversion, engine, workers, console)


def _foretell(conversion: Conversion, console: Console) -> None:
    """Say what will be written, and stop where the disk is too small for it."""
    from muco.data.prepare.convert import gib

    need = conversion.need(_progress(console))
    told = f"{len(conversion.source):,} records, {gib(need.num_bytes)} of shards at most"
    if need.num_missing:
        told += f"; {need.num_missing:,} records lack an image"
    console.print(told, highlight=False, soft_wrap=True)
    conversion.check_disk(need)


def _write(conversion: Conversion, engine: Any, workers: int, console: Console) -> None:
    from muco.data.prepare.convert import SKIPPED_FILE

    made = conversion.run(engine=engine, workers=workers, progress=_progress(console))
    console.print(f"{made.num_samples:,} samples in {conversion.folder}", highlight=False, soft_wrap=True)
    if made.num_skipped:
        where = conversion.folder / SKIPPED_FILE
        console.print(f"{made.num_skipped:,} records left out, named in {where}", soft_wrap=True)


def _progress(console: Console) -> ShowProgress:
    """Return what shows items go by: a bar on a terminal, else a line."""
    from rich.progress import track

    def progress(items: Iterable[Any], number: int, what: str) -> Iterable[Any]:
        if not console.is_terminal:
            console.print(f"{what}: {number:,}", highlight=False)
            return items
        return track(items, description=what, total=number, console=console, transient=True)

    return progress


@app.command()
def download(
    source: Annotated[str, typer.Argument(help="The source whose records name images by URL.")],
    path: Annotated[Path, typer.Option("--from", help="Where its tables lie.")],
    to: Annotated[Path, typer.Option("--to", help="The folder for tars of images.")],
    settings: Settings = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 32,
    per_host: Annotated[int, typer.Option(min=1, help="Requests at a time to one host.")] = 4,
    max_mib: Annotated[int, typer.Option(min=1, help="Refuse larger files.")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 50_000_000,
    max_shorter_side: MaxShorterSide = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A host that may have a private address. Repeatable.")
    ] = None,
) -> None:
    """Fetch the images that a source's tables name by URL; started again, it fetches what is missing."""
    from itertools import chain

    from muco.data.prepare.download import FAILURES_FILE, DownloadLimits, download
    from muco.data.prepare.from_cli import conversion_of

    console = Console()
    found = conversion_of(source, to, settings or [], path=path).source
    names = chain.from_iterable(map(_names(found), found.records()))
    urls = (name for name in names if name.startswith(("http://", "https://")))
    manners = DownloadLimits(
        concurrency=concurrency,
        per_host=per_host,
        max_bytes=max_mib * 2**20,
        max_pixels=max_pixels,
        max_shorter_side_pixels=max_shorter_side,
        allowed_hosts=frozenset(allow_host or ()),
    )
    done = download(_progress(console)(urls, len(found), "fetching images of records"), to, manners)
    if not (done.num_new or done.num_had or done.num_failed):
        raise MucoError(
            f"no record of {path} names an image by URL; say which column does, "
            "--set image_column=url say (m3t) or --set columns.query_image=url (pairs)"
        )
    console.print(
        f"{done.num_new:,} images fetched, {done.num_had:,} there before, {done.num_failed:,} failed",
        highlight=False,
    )
    if done.num_failed:
        console.print(f"named in {to / FAILURES_FILE}; started again, they are tried again", soft_wrap=True)


def _names(source: Source) -> Callable[[Any], list[str]]:
    """Return what lists the images that a record names; none where the record is broken."""
    from muco.core.errors import DataError

    def names(record: Any) -> list[str]:
        try:
            return list(source.image_names(record))
        except DataError:
            return []

    return names


Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="PART=COLUMN", help="query_text=txt: of tars of another tool."),
]


@app.command()
def index(folder: Annotated[Path, typer.Argument(help="A folder of WebDataset tars.")]) -> None:
    """Give WebDataset tars that another tool made the index that muco reads by."""
    from muco.data.shards.webdataset import index_folder

    console = Console()
    number = index_folder(folder, _progress(console))
    console.print(f"{number:,} samples in {folder}", highlight=False, soft_wrap=True)


@app.command()
def check(
    place: Annotated[str, typer.Argument(help="A folder of shards.")],
    columns: Columns = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode the images, too.")] = False,
) -> None:
    """Read every byte and sample of some shards, and say what is broken."""
    from muco.core.errors import DataError
    from muco.data.shards.check import MOST_NAMED, check_shards

    if "://" in place:
        raise MucoError(
            f"{place}: check reads a folder of this machine; a shard at a URL is held against its digest "
            "whenever it is fetched"
        )
    console, folder = Console(), Path(place)
    found = check_shards(folder, columns=_columns(columns), decode=decode, progress=_progress(console))
    if found.num_problems:
        more = found.num_problems - len(found.problems)
        rest = f"\n  and {more:,} more, {MOST_NAMED} are named" if more else ""
        problems = "\n  ".join(found.problems)
        raise DataError(f"{folder}: {found.num_problems:,} problems\n  {problems}{rest}")
    told = f"{folder}: fine; {found.num_samples:,} samples, {found.num_images:,} images"
    console.print(told, highlight=False, soft_wrap=True)


@app.command()
def show(
    place: Annotated[str, typer.Argument(help="A folder of shards, or the URL of one.")],
    columns: Columns = None,
    html: Annotated[Path | None, typer.Option(help="Write a page of samples there.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples on the page.")] = 24,
    most: Annotated[int, typer.Option(min=1, help="Samples that the figures are made of.")] = 10_000,
) -> None:
    """Say what lies in some shards: counts, tasks, lengths of texts, sizes of images."""
    from rich.table import Table

    from muco.data.prepare.convert import gib
    from muco.data.shards.reader import ShardReader
    from muco.data.shards.statistics import summarize

    console = Console()
    reader = ShardReader(place, columns=_columns(columns), dataset=Path(place).name)
    found = summarize(reader, most=most, progress=_progress(console))
    shards = len(reader.index.shards)
    size = f"{gib(found.num_bytes)} in {shards:,} {'shard' if shards == 1 else 'shards'}"
    console.print(f"{found.num_samples:,} samples, {size}", highlight=False)
    if found.num_seen < found.num_samples:
        console.print(f"figures of {found.num_seen:,} of them, evenly spread", highlight=False)
    if found.num_unreadable:
        console.print(
            f"{found.num_unreadable:,} cannot be read; `muco data check` names them", style="yellow"
        )
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, spread in found.spreads():
        table.add_row(name, spread)
    console.print(table)
    for title, counts in (
        ("samples of", found.datasets),
        ("pairs", found.directions),
        ("pairs", found.tasks),
    ):
        for name, number in counts.most_common(40):
            console.print(f"{number:>12,} {title} {name}", highlight=False, markup=False)
    if html is not None:
        from muco.report.samples import write_page

        try:
            write_page(html, reader, found, name=place, size=size, most=samples)
        except OSError as error:
            raise MucoError(f"{html}: the page cannot be written: {error}") from None
        console.print(f"{html}", highlight=False, soft_wrap=True)


def _columns(given: list[str] | None) -> Any:
    """Return the columns that options name; None where there are none."""
    if not given:
        return None
    from pydantic import ValidationError

    from muco.data.prepare.from_cli import told_of
    from muco.io.columns import PairColumns

    for each in given:
        if "=" not in each:
            raise MucoError(f"--column {each}: write PART=COLUMN, query_text=txt say")
    try:
        return PairColumns.model_validate(dict(each.split("=", 1) for each in given))
    except ValidationError as error:
        raise MucoError(f"--column:\n{told_of(error, list(PairColumns.model_fields))}") from None
