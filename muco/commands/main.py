"""The command line: `muco` and its short form `muco-run`."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from muco.commands.data import app as data_app
from muco.commands.options import LogFormat, Quiet, console_of
from muco.console import Terminal, plain_table
from muco.core.errors import MucoError, RecipeError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
_DISK_ERRORS |= {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
"""The disk is full, not writable or broken, or a file is in the way: errors that the user can fix."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")


def _print_version(is_given: bool) -> None:
    if is_given:
        from muco import __version__

        typer.echo(f"muco {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and stop.")
    ] = False,
) -> None:
    """Train, ablate and evaluate universal multimodal embedding models."""


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.num_steps=10. Repeatable."),
]


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    overrides: Overrides = None,
    only: Annotated[Literal["train", "evaluate"] | None, typer.Option(help="Run only this part.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run in the folder first.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Check the recipe and stop.")] = False,
    to: Annotated[Path | None, typer.Option(help="The run folder; by default runs/NAME.")] = None,
    probe: Annotated[
        Literal["blind"] | None,
        typer.Option(help="blind: rank batches of a finished run without its images."),
    ] = None,
    flops: Annotated[bool, typer.Option("--flops", help="Count the FLOPs of a step and stop.")] = False,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An assumption about the batch, for --flops."),
    ] = None,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
) -> None:
    """Train and evaluate a model as a recipe says, and write a report, in ./runs/NAME."""
    from muco.config.load import load_recipe

    if resume and fresh:
        raise MucoError("--resume continues a run and --fresh starts again: choose one")
    console = console_of(quiet, log_format)
    loaded = load_recipe(recipe, overrides or [])
    if flops:
        from muco.commands.flops import print_flops

        print_flops(loaded, assume or [], console)
        return
    if probe is not None:
        from muco.commands.probe import probe as run_probe

        run_probe(loaded, folder=to, console=console)
        return
    if check:
        from muco.commands.check import check as check_run

        notes = check_run(loaded, recipe)
        console.print(f"{recipe}: no problems; the run's folder is {to or Path('runs', loaded.name)}")
        for note in notes:
            console.print(f"note: {note}")
        return
    from muco.commands.run import run

    run(loaded, folder=to, resume=resume, fresh=fresh, only=only, console=console)


@app.command("init")
def init_command(
    path: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A table, or a folder of tables or of CLASS/IMAGE.jpg.")
    ],
    to: Annotated[Path | None, typer.Option("--to", help="The recipe; else NAME.yaml.")] = None,
    images: Annotated[Path | None, typer.Option(help="Where image paths start from.")] = None,
    query_text: Annotated[str | None, typer.Option(help="The column; '' for none.")] = None,
    query_image: Annotated[str | None, typer.Option(help="The column; '' for none.")] = None,
    target_text: Annotated[str | None, typer.Option(help="The column; '' for none.")] = None,
    target_image: Annotated[str | None, typer.Option(help="The column; '' for none.")] = None,
    negative_text: Annotated[str | None, typer.Option(help="The column of hard negatives.")] = None,
    negative_image: Annotated[str | None, typer.Option(help="The column of their images.")] = None,
    held_out: Annotated[
        float, typer.Option("--held-out", min=0, max=0.9, help="Share of the images that is held out.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides what is held out.")] = 0,
    machine: Annotated[
        Literal["cpu", "gpu"] | None, typer.Option(help="What it is for; else what this machine has.")
    ] = None,
) -> None:
    """Write a recipe for data of your own: guess its columns, and hold a part out for the score."""
    from muco.commands.init import init

    parts = {
        "query_text": query_text, "query_image": query_image, "target_text": target_text,
        "target_image": target_image, "negative_text": negative_text, "negative_image": negative_image,
    }  # fmt: skip
    init(
        path, to=to, images=images, columns={part: name for part, name in parts.items() if name is not None},
        held_out=held_out, seed=seed, machine=machine, console=Terminal(),
    )  # fmt: skip


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, or a backbone's name.")],
    suite: Annotated[str, typer.Option("--suite", help="The suite: scenes, pairs, mmeb, mbeir or mteb.")],
    data: Annotated[
        Path | None, typer.Option(help="The folder of the suite's data, if it reads files.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The folder for the results; by default runs/NAME.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
) -> None:
    """Score a model on a suite. --set evaluate.suites.0.KEY=VALUE changes a setting of the suite."""
    from muco.commands.evaluate import evaluate as run_evaluation

    console = console_of(quiet, log_format)
    run_evaluation(model, suite, data=data, overrides=overrides or [], to=to, console=console)


@app.command()
def ablate(
    grid: Annotated[str, typer.Argument(help="A grid file, or the name of a shipped one.")],
    bases: Annotated[
        list[str] | None, typer.Option("--base", help="Another base recipe: RECIPE or STAGE=RECIPE.")
    ] = None,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Run cells with this value. Repeatable."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="The folder of all grids.")] = Path("runs/ablations"),
    launcher: Annotated[
        Literal["local", "slurm", "ray"], typer.Option(help="Where the cells run.")
    ] = "local",
    jobs: Annotated[int, typer.Option(min=1, help="Cells that run at once; they share the threads.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Processes of a cell, one for each of its GPUs.")] = 1,
    resources: Annotated[
        list[str] | None,
        typer.Option(
            "--resource", metavar="KEY=VALUE", help="What a cell gets from slurm or ray. Repeatable."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and their cost, and stop.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop when a cell fails.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Allow more than 500 cells.")] = False,
) -> None:
    """Run the unfinished cells of a grid, and write its table and page."""
    from muco.commands.ablate import ablate as run_grid

    run_grid(
        grid, console=Terminal(), folder=folder, bases=bases or [], overrides=overrides or [],
        only=only or [], launcher=launcher, num_jobs=jobs, num_processes=processes,
        resources=resources or [], dry_run=dry_run,
        retry_failed=retry_failed, fail_fast=fail_fast, yes=yes,
    )  # fmt: skip


@app.command()
def mine(
    model: Annotated[
        str, typer.Argument(help="The teacher: a run folder, a model folder, or a backbone's name.")
    ],
    to: Annotated[
        Path | None, typer.Option("--to", help="The folder to write; by default RUN/mined.")
    ] = None,
    shards: Annotated[
        Path | None, typer.Option(help="A folder of shards; by default the run's data.")
    ] = None,
    range_min: Annotated[
        int, typer.Option(min=0, help="Leave out this many nearest neighbours, which are likely positives.")
    ] = 30,
    range_max: Annotated[int, typer.Option(min=1, help="Keep neighbours up to this rank.")] = 130,
    negatives: Annotated[
        int, typer.Option(min=0, help="Also write new shards with this many hard negatives per pair.")
    ] = 0,
    overrides: Overrides = None,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
) -> None:
    """Rank similar samples by a teacher: a neighbour graph for the sampler `mined`, and hard negatives."""
    from muco.commands.mine import mine as run_mining

    run_mining(
        model, to=to, shards=shards, range_min=range_min, range_max=range_max, num_negatives=negatives,
        overrides=overrides or [], console=console_of(quiet, log_format),
    )  # fmt: skip


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A run folder or a model folder.")],
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    layout: Annotated[
        Literal["transformers", "muco"], typer.Option(help="muco: a folder for muco and open_clip only.")
    ] = "transformers",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare its vectors with muco's.")
    ] = True,
    license_id: Annotated[
        str | None, typer.Option("--license", help="License of the weights, such as apache-2.0.")
    ] = None,
) -> None:
    """Write a trained model as a folder for transformers, sentence-transformers, vLLM and muco."""
    from muco.commands.export import export as write_model

    written = write_model(model, to, layout=layout, check=check, license_id=license_id, console=Terminal())
    Terminal().print(f"{written}")


@app.command()
def encode(
    model: Annotated[
        str, typer.Argument(help="A run folder, a model folder, an exported one, or its hub name.")
    ],
    inputs: Annotated[
        Path, typer.Argument(help="A folder of images, or a JSONL, CSV, TSV or Parquet table.")
    ],
    to: Annotated[Path, typer.Option("--to", help="The store to write: .parquet or .npy.")],
    text: Annotated[str | None, typer.Option(help="The table's column of texts.")] = None,
    image: Annotated[str | None, typer.Option(help="The table's column of image paths.")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="The table's column of ids; by default row numbers.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The folder to which image paths are relative.")] = None,
    instruction: Annotated[str, typer.Option(help="Text put before every text, without a space.")] = "",
    dim: Annotated[
        int | None, typer.Option(help="Shorten the vectors to this size, if it was trained.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="Type of the stored numbers.")
    ] = "float32",
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens and image patches encoded at once.")
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add the items that are not in the store.")
    ] = False,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
) -> None:
    """Encode a folder of images, or a table, into a store of vectors. If killed, start it again."""
    from muco.commands.encode import encode as run_encoding
    from muco.vectors.inputs import Columns

    run_encoding(
        model, inputs, to, columns=Columns(id_, text, image), images=images, instruction=instruction, dim=dim,
        dtype=dtype, batch_tokens=batch_tokens, append=append, console=console_of(quiet, log_format),
    )  # fmt: skip


@app.command()
def search(
    store: Annotated[Path, typer.Argument(help="The store, a file that muco encode wrote.")],
    text: Annotated[str, typer.Argument(help="The query's text.")] = "",
    image: Annotated[Path | None, typer.Option("--image", help="The query's image.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of items.")] = 10,
    html: Annotated[Path | None, typer.Option("--html", help="Also write the items as a page.")] = None,
    instruction: Annotated[str, typer.Option(help="Text put before the query's text, without a space.")] = "",
    model: Annotated[str | None, typer.Option(help="The model; by default the path in the store.")] = None,
) -> None:
    """Print the items of a store that are nearest to a text, an image, or both."""
    from muco.commands.search import search as run_search

    run_search(
        store, text, image=image, model=model, instruction=instruction, k=k, html=html, console=Terminal()
    )


@app.command()
def demo(
    store: Annotated[Path, typer.Argument(help="The store, a file that muco encode wrote.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The model; by default the path in the store.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 for any free one.")] = 0,
) -> None:
    r"""Serve a page on this machine that searches a store by text and image. Needs muco\[demo]."""
    from muco.commands.demo import demo as run_demo

    run_demo(store, model=model, port=port, console=Terminal())


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Written by muco export.")],
    name: Annotated[str, typer.Argument(help="On the hub: owner/name.")],
    public: Annotated[bool, typer.Option("--public", help="A new repository is public.")] = False,
) -> None:
    """Upload an exported model to the hub, where muco.load, transformers and others find it."""
    from muco.commands.push import push as upload

    Terminal().print(upload(folder, name, public=public))


@app.command("list")
def list_command(
    kind: Annotated[str | None, typer.Argument(help="List only this kind, such as packer.")] = None,
) -> None:
    """List the components and the package that provides each."""
    from muco.core.component import KINDS
    from muco.core.errors import did_you_mean
    from muco.core.registry import default_registry

    if kind is not None and kind not in KINDS:
        raise MucoError(f"no kind named {kind!r}.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}")
    table = plain_table("kind", "name", "provider")
    for entry in default_registry():
        if kind in (None, entry.kind):
            table.add_row(entry.kind, entry.name, entry.provider)
    Terminal().print(table)


@app.command()
def doctor() -> None:
    """Print what muco runs on: versions, device, precision, attention kernel, free disk space."""
    from muco.commands.doctor import findings

    table = plain_table()
    for name, value in findings().items():
        table.add_row(name, value)
    Terminal().print(table)


@app.command()
def schema(
    of: Annotated[Literal["recipe", "grid", "generate"], typer.Argument(help="Of what.")] = "recipe",
) -> None:
    """Print the JSON Schema of recipes, of grids or of the files of `muco data generate`, for editors."""
    import json

    from muco.ablation.grid import Grid
    from muco.config.json_schema import recipe_schema
    from muco.core.registry import default_registry
    from muco.generate.settings import Generation

    schemas = {
        "recipe": lambda: recipe_schema(default_registry()),
        "grid": Grid.model_json_schema,
        "generate": Generation.model_json_schema,
    }
    typer.echo(json.dumps(schemas[of](), indent=1))


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="runs/NAME")],
    others: Annotated[
        list[Path] | None, typer.Argument(metavar="[OTHER]...", help="Runs to compare it with.")
    ] = None,
) -> None:
    """Write the report page of a run again, with published scores and other runs to compare."""
    from muco.report.page import write_report

    Terminal().print(f"{write_report(run_folder, others or ())}")


def main(arguments: list[str] | None = None) -> None:
    """Run `muco` and exit: with 2 for errors that the user can fix, with 130 on Ctrl-C."""
    gc.set_threshold(50_000)  # by default, collections take 3 % of a small run, and find next to nothing
    atexit.register(gc.freeze)  # else Python visits every object of the imported libraries as it exits
    try:
        app(arguments, prog_name="muco")
    except RecipeError as error:
        # All processes of a launcher read the same recipe; one on each machine prints the error.
        _fail(str(error) if os.environ.get("LOCAL_RANK", "0") == "0" else "")
    except MucoError as error:
        _fail(str(error), getattr(error, "exit_code", 2))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _fail(f"{error.filename or 'a file'}: cannot be read or written: {error.strerror}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which is not imported for every command
            raise
        _fail(
            f"{error}\nThe device has too little memory. To train with less: train.grad_cache=true and "
            "train.chunk_tokens=auto, backbone.gradient_checkpointing=true or a smaller backbone.max_pixels. "
            "To evaluate: a smaller evaluate.batch_tokens; to encode: --batch-tokens"
        )


def _fail(message: str, code: int = 2) -> NoReturn:
    if message:
        Terminal(stderr=True).print(message, style="red")
    sys.exit(code)


def run_main() -> None:
    """Run `muco-run`, short for `muco run`."""
    main(["run", *sys.argv[1:]])
