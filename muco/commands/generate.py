"""`muco data generate`: ask a model for captions and pairs, and write a table of them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from muco.core.errors import DataError, MucoError
from muco.generate.client import Client
from muco.generate.counts import Counts
from muco.generate.curriculum import Curriculum
from muco.generate.inputs import Inputs, Item
from muco.generate.journal import Journal
from muco.generate.language import check_language
from muco.generate.page import cost_of, write_page
from muco.generate.pictures import image_url
from muco.generate.requests import Request
from muco.generate.run import Progress, Run
from muco.generate.settings import Generation
from muco.generate.steps import Steps, follow
from muco.generate.table import beside, check_table, has_other_prompts, journal_of, write_table

_DRY_IMAGES = 3
_ASKED_AGAIN = ("unanswered", "request_refused", "not_asked")
"""Reasons of images that the next call asks about."""
_SECONDS_BETWEEN_LINES = 30.0


def generate(
    settings: Generation,
    inputs: Inputs,
    to: Path,
    *,
    one_stage: bool,
    dry_run: bool,
    console: Console,
) -> None:
    """Ask for what the journal beside the table lacks, then write table, list of skipped images and page.

    `dry_run` prints the requests of three images and stops; no server is needed. Raise MucoError for what the
    user can fix; answers that arrived are kept.
    """
    check_table(to, inputs)
    number = inputs.count()
    if inputs.num_without_caption:
        lacking = f"{inputs.num_without_caption:,} images are left out: {inputs.captions_path} has no caption"
        console.print(f"{lacking} for them")
    _check_models(settings, inputs, one_stage=one_stage)
    if settings.filters.language:
        check_language(settings.filters.language)
    curriculum = Curriculum(settings)
    if dry_run:
        _print_requests(curriculum, inputs, one_stage=one_stage, console=console)
        return
    client = Client(settings.server)
    start = time.perf_counter()
    steps = Steps(curriculum, inputs.images.size, one_stage=one_stage)
    if has_other_prompts(to, steps):
        console.print(f"{to} is of other prompts, models or kinds: its images are asked about again")
    with Journal.open(journal_of(to)) as journal:
        with _bar(number, settings, console) as show:
            run = Run(
                steps, client, journal, lambda name: image_url(name, inputs.images, settings.images),
                concurrency=settings.server.concurrency, progress=show,
            )  # fmt: skip
            asyncio.run(run.over(inputs))
        counts = write_table(to, inputs, steps, journal)
    page = beside(to, "html")
    write_page(page, to, counts, inputs, settings)
    _print_counts(counts, run.progress, time.perf_counter() - start, settings, console)
    if not counts.num_rows:
        raise DataError(f"{to}: no image has pairs; {page} shows why")
    console.print(f"{to}: {counts.num_rows:,} rows, {counts.num_pairs:,} pairs. Report: {page}")


def _check_models(settings: Generation, inputs: Inputs, *, one_stage: bool) -> None:
    if settings.server.model:
        return
    stages = {"one_stage": settings.one_stage} if one_stage else {"pairs": settings.pairs}
    if not one_stage and any(not item.caption for item in inputs):
        stages["caption"] = settings.caption
    if settings.filters.round_trip and settings.round_trip:
        stages["round_trip"] = settings.round_trip
    for name, stage in stages.items():
        if not stage.model:
            raise MucoError(f"no model: --set server.model=NAME for all requests, or {name}.model")


def _print_requests(curriculum: Curriculum, inputs: Inputs, *, one_stage: bool, console: Console) -> None:
    """Print what would be sent for the first images; of the image data only the length."""
    settings = curriculum.settings
    steps = Steps(curriculum, inputs.images.size, one_stage=one_stage)
    for item in islice(inputs, _DRY_IMAGES):
        for each in (item, Item(item.image, f"(caption of {item.image})")):
            request = follow(steps.result(each), lambda key: None)
            if not isinstance(request, Request):
                console.print(f"{item.image}: skipped, {request}")
                break
            url = image_url(item.image, inputs.images, settings.images) if request.image else None
            _print_request(request.stage, item, request.wire_body(url), console)
            if request.stage == "pairs":
                break


def _print_request(stage: str, item: Item, body: dict[str, Any], console: Console) -> None:
    text = json.dumps(body, ensure_ascii=False, indent=1)
    text = re.sub(
        r"(data:image/\w+;base64,)([\w+/=]+)", lambda it: f"{it[1]}... ({len(it[2]):,} characters)", text
    )
    console.print(f"{item.image}: {stage}\n{text}")


def _print_counts(
    counts: Counts, progress: Progress, seconds: float, settings: Generation, console: Console
) -> None:
    for reason, number in counts.skipped.most_common():
        again = "; start again to ask them" if reason in _ASKED_AGAIN else ""
        console.print(f"{number:,} images left out: {reason}{again}")
    for name, number in counts.dropped.most_common():
        console.print(f"{number:,} pairs dropped: {name}")
    console.print(
        f"{progress.answers:,} answers in {seconds:.1f} s; {_tokens(progress, settings)}. The whole table: "
        f"{counts.usage.requests:,} answers, {counts.num_repaired:,} rows repaired"
    )


def _tokens(progress: Progress, settings: Generation) -> str:
    text = f"{progress.prompt_tokens:,} + {progress.completion_tokens:,} tokens"
    cost = cost_of(progress.prompt_tokens, progress.completion_tokens, settings)
    return f"{text}, about {cost:,.2f}" if cost else text


def _speed(rows: int, seconds: float) -> str:
    speed = rows / max(seconds, 1e-9)
    return f"{speed:,.1f} rows/s" if speed >= 1 else f"{speed * 60:,.1f} rows/min"


@contextmanager
def _bar(number: int, settings: Generation, console: Console) -> Generator[Callable[[Progress], None]]:
    """Show rows, rows a second and tokens; a line now and then where no terminal is."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = last = time.perf_counter()
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("generate", total=number)

        def show(progress: Progress) -> None:
            nonlocal last
            now = time.perf_counter()
            if not console.is_terminal and now - last < _SECONDS_BETWEEN_LINES:
                return
            line = f"{_speed(progress.rows, now - start)}, {_tokens(progress, settings)}"
            bars.update(bar, completed=progress.rows, description=line)
            if not console.is_terminal:
                last = now
                console.print(f"{progress.rows:,} of {number:,}; {line}")

        yield show
