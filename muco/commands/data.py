"""The commands `muco data`: prepare, generate, download, index, check, show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from muco.commands.options import LogFormat, Quiet, console_of
from muco.console import Terminal, plain_table, progress_bar
from muco.core.errors import DataError, MucoError
from muco.core.printable import format_size

if TYPE_CHECKING:
    from muco.core.source import Source
    from muco.data.prepare.convert import Conversion

app = typer.Typer(no_args_is_help=True, help="Make, check and show training data.")
make_app = typer.Typer(no_args_is_help=True, help="Make shards of data that muco draws itself.")
app.add_typer(make_app, name="make")
console = Terminal()
_progress = partial(progress_bar, console=console)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the source. Repeatable."),
]
MaxShorterSide = Annotated[
    int | None, typer.Option(min=1, help="Reduce images to this shorter side, in pixels.")
]
To = Annotated[Path, typer.Option("--to", help="The folder to write.")]


@make_app.command("scenes")
def make_scenes(to: To, settings: Settings = None) -> None:
    """Draw scenes and write them as shards; --set num_samples=1000 and the source's other settings."""
    from muco.data.prepare.from_cli import conversion_of

    if to.exists():
        raise DataError(f"{to} exists; name a folder to be made")
    _write(conversion_of("scenes", to, settings or []), "local", 0, console)


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="m3t, mmeb, mbeir, pairs, or a source of a plugin.")],
    to: To,
    path: Annotated[Path | None, typer.Option("--from", help="The folder or file of the data set.")] = None,
    settings: Settings = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images; 0 for none.")] = 2,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="ray: for a cluster.")] = "local",
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Reduce larger images; by default all are copied unchanged.")
    ] = None,
    max_shorter_side: MaxShorterSide = None,
    enlarge: Annotated[
        bool, typer.Option("--enlarge", help="Also enlarge images to --max-shorter-side, as the paper does.")
    ] = False,
    max_skipped_share: Annotated[
        float, typer.Option(min=0, max=1, help="Stop if more than this share of the records is skipped.")
    ] = 0.01,
    shard_mib: Annotated[int, typer.Option(min=1, help="Size at which a shard is closed.")] = 256,
    repeat_images: Annotated[
        bool, typer.Option("--repeat-images", help="Write an image into every sample that uses it.")
    ] = False,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
) -> None:
    """Convert a data set into shards. Started again after a kill, it continues where it stopped."""
    from muco.data.prepare.convert import Layout
    from muco.data.prepare.from_cli import conversion_of

    console = console_of(quiet, log_format)
    if enlarge and max_shorter_side is None:
        raise MucoError("--enlarge needs --max-shorter-side, the size that images are enlarged to")
    layout = Layout(max_pixels, max_shorter_side, enlarge, shard_mib * 2**20, repeat_images)
    conversion = conversion_of(
        source, to, settings or [], path=path, layout=layout, max_skipped_share=max_skipped_share
    )
    conversion.check_folder()
    if not to.exists():
        _estimate(conversion, console)
    _write(conversion, engine, workers, console)


def _estimate(conversion: Conversion, console: Terminal) -> None:
    """Print an estimate of the shards' size, and stop if the disk has no room for it."""
    estimate = conversion.estimate(partial(progress_bar, console=console))
    message = f"{len(conversion.source):,} records, about {format_size(estimate.num_bytes)} of shards"
    if estimate.num_missing:
        message += f"; {estimate.num_missing:,} records lack an image"
    console.print(message)
    for path in conversion.source.left_out():
        console.print(f"not read: {path}")
    conversion.check_disk(estimate)


def _write(conversion: Conversion, engine: Any, workers: int, console: Terminal) -> None:
    from muco.data.prepare.convert import SKIPPED_FILE

    progress = partial(progress_bar, console=console)
    converted = conversion.run(engine=engine, workers=workers, progress=progress)
    console.print(f"{converted.num_samples:,} samples in {conversion.folder}")
    if converted.num_skipped:
        path = conversion.folder / SKIPPED_FILE
        console.print(f"{converted.num_skipped:,} records skipped, listed in {path}")


@app.command()
def generate(
    source: Annotated[str, typer.Argument(help="The kinds and prompts: m3t, or a YAML file.")],
    path: Annotated[Path, typer.Option("--from", help="A folder, zip or tar of images, or a table.")],
    to: Annotated[Path, typer.Option(help="The table to write: .jsonl or .parquet.")],
    settings: Settings = None,
    captions: Annotated[
        Path | None, typer.Option(help="A table of image paths and captions; only these images are used.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Where a table's image paths start from.")] = None,
    column: Annotated[str, typer.Option(help="A table's column of image paths.")] = "image",
    one_stage: Annotated[
        bool, typer.Option("--one-stage", help="Ask for caption and pairs in one request.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many images.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="So many images, chosen by their names.")] = None,
    part: Annotated[str, typer.Option(metavar="I/N", help="Part i of n, for several machines.")] = "1/1",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the requests of three images and stop.")
    ] = False,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
) -> None:
    """Let a model write captions and question-answer pairs for images; started again, it continues."""
    from muco.commands.generate import generate as run_generation
    from muco.generate.inputs import Inputs, Selection, part_of, part_path
    from muco.generate.settings import load_generation

    chosen = part_of(part)
    inputs = Inputs(
        path, images=images, column=column, captions=captions, selection=Selection(chosen, sample, limit)
    )
    loaded = load_generation(source, settings or [])
    run_generation(
        loaded, inputs, part_path(to, chosen), one_stage=one_stage, dry_run=dry_run,
        console=console_of(quiet, log_format),
    )  # fmt: skip


@app.command()
def download(
    source: Annotated[str, typer.Argument(help="The source whose records name images by URL.")],
    path: Annotated[Path, typer.Option("--from", help="The folder or file of its tables.")],
    to: Annotated[Path, typer.Option(help="The folder for tars of images.")],
    settings: Settings = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 32,
    per_host: Annotated[int, typer.Option(min=1, help="Requests at a time to one host.")] = 4,
    max_mib: Annotated[int, typer.Option(min=1, help="Refuse larger files.")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 50_000_000,
    max_shorter_side: MaxShorterSide = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A host that may have a private address. Repeatable.")
    ] = None,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
) -> None:
    """Download the images that tables name by URL. Started again, it downloads what is missing."""
    from muco.data.prepare.download import FAILURES_FILE, DownloadLimits, download
    from muco.data.prepare.from_cli import conversion_of

    console = console_of(quiet, log_format)
    opened = conversion_of(source, to, settings or [], path=path).source
    limits = DownloadLimits(
        concurrency=concurrency,
        per_host=per_host,
        max_bytes=max_mib * 2**20,
        max_pixels=max_pixels,
        max_shorter_side_pixels=max_shorter_side,
        allowed_hosts=frozenset(allow_host or ()),
    )
    records = progress_bar(opened.records(), len(opened), "fetching images of records", console=console)
    fetched = download(chain.from_iterable(_urls(opened, record) for record in records), to, limits)
    if not (fetched.num_new or fetched.num_had or fetched.num_failed):
        raise MucoError(
            f"no record of {path} names an image by URL. Name the column that does, for example "
            "--set image_column=url (m3t) or --set columns.query_image=url (pairs)"
        )
    counts = f"{fetched.num_new:,} images fetched, {fetched.num_had:,} fetched before"
    console.print(f"{counts}, {fetched.num_failed:,} failed")
    if fetched.num_failed:
        console.print(f"Failures: {to / FAILURES_FILE}. Start again to retry them.")


def _urls(source: Source, record: Any) -> Iterator[str]:
    """Yield the URLs among the names of a record's images; none if the record is broken."""
    with suppress(DataError):
        yield from (name for name in source.image_names(record) if name.startswith(("http://", "https://")))


Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="PART=COLUMN", help="For tars of another tool: query_text=txt."),
]


@app.command()
def index(folder: Annotated[Path, typer.Argument(help="A folder of WebDataset tars.")]) -> None:
    """Write the index that muco needs for WebDataset tars of another tool."""
    from muco.data.shards.webdataset import index_folder

    number = index_folder(folder, _progress)
    console.print(f"{number:,} samples in {folder}")


@app.command()
def check(
    shards: Annotated[str, typer.Argument(help="A folder of shards.")],
    columns: Columns = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode the images too.")] = False,
) -> None:
    """Read every byte and every sample of a folder of shards, and list the problems."""
    from muco.data.shards.check import check_shards

    if "://" in shards:
        raise MucoError(
            f"{shards}: check reads a folder of this machine; a shard at a URL is compared with its digest "
            "whenever it is fetched"
        )
    folder = Path(shards)
    result = check_shards(folder, columns=_columns(columns), decode=decode, progress=_progress)
    if result.num_problems:
        more = result.num_problems - len(result.problems)
        problems = "\n  ".join([*result.problems, *([f"and {more:,} more"] if more else [])])
        raise DataError(f"{folder}: {result.num_problems:,} problems\n  {problems}")
    message = f"{folder}: no problems; {result.num_samples:,} samples, {result.num_images:,} images"
    console.print(message)


@app.command()
def show(
    shards: Annotated[str, typer.Argument(help="A folder of shards, or the URL of one.")],
    columns: Columns = None,
    html: Annotated[Path | None, typer.Option(help="Write a page of samples to this file.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples on the page.")] = 24,
    most: Annotated[int, typer.Option(min=1, help="Number of samples to read for the statistics.")] = 10_000,
) -> None:
    """Print statistics of a folder of shards: counts, tasks, lengths of texts, sizes of images."""
    from muco.data.shards.reader import ShardReader
    from muco.data.shards.statistics import summarize

    reader = ShardReader(shards, columns=_columns(columns), dataset=Path(shards).name)
    summary = summarize(reader, most=most, progress=_progress)
    num_shards = len(reader.index.shards)
    size = f"{format_size(summary.num_bytes)} in {num_shards:,} {'shard' if num_shards == 1 else 'shards'}"
    console.print(f"{summary.num_samples:,} samples, {size}")
    if summary.num_seen < summary.num_samples:
        console.print(f"statistics of {summary.num_seen:,} of them, evenly spread")
    if summary.num_unreadable:
        console.print(
            f"{summary.num_unreadable:,} cannot be read; `muco data check` lists them", style="yellow"
        )
    table = plain_table()
    for name, spread in summary.spreads():
        table.add_row(name, spread)
    console.print(table)
    for title, counts in (
        ("samples of", summary.datasets),
        ("pairs", summary.directions),
        ("pairs", summary.tasks),
    ):
        for name, number in counts.most_common(40):
            console.print(f"{number:>12,} {title} {name}")
    if html is not None:
        from muco.io.atomic import write_errors
        from muco.report.samples import write_page

        with write_errors(f"{html}: the page"):
            write_page(html, reader, summary, name=shards, size=size, most=samples)
        console.print(f"{html}")


def _columns(given: list[str] | None) -> Any:
    """Return the columns of `--column` options; None without any."""
    if not given:
        return None
    from muco.config.load import validate_settings
    from muco.io.columns import PairColumns

    for each in given:
        if "=" not in each:
            raise MucoError(f"--column {each}: write PART=COLUMN, for example query_text=txt")
    return validate_settings(PairColumns, dict(each.split("=", 1) for each in given), (), title="--column")
