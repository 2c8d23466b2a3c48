"""Score an encoder on suites and write the results."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from muco.config.recipe import EvaluateSettings
from muco.console import print_record, progress_bar
from muco.distributed.ranks import Ranks
from muco.evaluation.embedding_store import EmbeddingStore
from muco.evaluation.encode import CachedEmbedder
from muco.evaluation.queries import queries_file, write_queries
from muco.evaluation.results import TaskScore, write_results
from muco.evaluation.suite import NamedSuite, run_suite
from muco.model.folder import LoadedModel
from muco.run_folder import RunFolder, versions


def score(
    model: LoadedModel,
    suites: Iterable[NamedSuite],
    settings: EvaluateSettings,
    run_folder: RunFolder,
    console: Console,
    ranks: Ranks,
) -> dict[str, float] | None:
    """Run suites whose data was verified, and write results and embeddings to the folder's `eval`.

    The encoder is moved to this process's device. Return averages and tasks by name; None in all processes
    but the main one.
    """
    metrics: dict[str, float] = {}
    with open_embedder(model, settings, run_folder.eval / "vectors", console, ranks) as (embedder, metadata):
        for each in suites:
            results = run_suite(
                each.name,
                each.suite,
                embedder,
                ties=settings.ties,
                gallery_queries=settings.gallery_queries,
                depends_on={"weights": model.weights, "step": model.step, "suite": each.settings}
                | {"ties": settings.ties, **metadata},
                track=lambda task: lambda windows, number: _bar(windows, number, task, console),
                scored=partial(_print_task, console, each.name),
            )
            if results is None:
                continue
            scores, gallery, per_query = results
            write_queries(queries_file(run_folder.eval, each.name), per_query)
            write_results(run_folder.eval, scores, gallery)
            metrics |= scores.metrics()
            for warning in scores.warnings:
                console.print(f"warning: {warning}", style="yellow")
    return metrics if ranks.is_main else None


def _bar(windows: Iterable[Any], number: int, task: str, console: Console) -> Iterable[Any]:
    """Show progress on a terminal; elsewhere a task has one line, its score."""
    return progress_bar(windows, number, task, console) if console.is_terminal else windows


def _print_task(console: Console, suite: str, name: str, task: TaskScore) -> None:
    text = (
        f"{suite}/{name}: {task.metric} {task.score:.3f}, chance {task.chance:.3f}, "
        f"{task.num_queries:,} queries"
    )
    print_record(console, "task", {"suite": suite, "task": name, **asdict(task)}, text)


@contextmanager
def open_embedder(
    model: LoadedModel, settings: EvaluateSettings, folder: Path, console: Console, ranks: Ranks
) -> Generator[tuple[CachedEmbedder, dict[str, Any]]]:
    """Yield an embedder with a store of its own in `folder`, and what its vectors depend on."""
    on_cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_cuda else torch.device("cpu")
    backbone = model.settings.backbone
    join_turns = settings.join_turns and "isolated_turns" in backbone.cls.offers(backbone.config)
    metadata = {
        "weights": model.weights,
        **model.settings.dump(),
        "join_turns": join_turns,
        "store": settings.embedding_dtype,
        "device": device.type,
        "versions": versions(),
    }
    key = blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=8).hexdigest()
    dim = model.encoder.pooler.embedding_dim
    ranks.wait()
    store = EmbeddingStore(folder / key, metadata, dim=dim, dtype=settings.embedding_dtype, part=ranks.rank)
    with store:
        ranks.wait()  # No process adds before all have read what the store holds.
        if any(weight.device != device for weight in model.encoder.parameters()):
            model.encoder.to(device)  # only then: `to` shards weights again that a training holds whole
        embedder = CachedEmbedder(
            model.encoder,
            model.packer,
            store,
            batch_tokens=settings.batch_tokens,
            join_turns=join_turns,
            ranks=ranks,
        )
        yield embedder, metadata
    ranks.wait()  # This waits for hours, `sums` for minutes.
    passes = ranks.sums(asdict(embedder.passes), device)
    if passes["cut_texts"]:
        console.print(
            f"warning: of {passes['num_contents']:,.0f} encoded contents {passes['cut_texts']:,.0f} have a "
            "text longer than the backbone's context; it was cut",
            style="yellow",
        )
    if passes["num_passes"] != passes["num_contents"]:
        console.print(_describe_saved_passes(passes))


def _describe_saved_passes(passes: dict[str, float]) -> str:
    """Say what `join_turns` saved, in tokens and patches; the time saved depends on more than these."""
    ratios = [
        f"{passes[f'{what}_alone'] / passes[what]:.2f} times fewer {name} ({passes[what]:,.0f}, not "
        f"{passes[f'{what}_alone']:,.0f})"
        for what, name in (("tokens", "tokens"), ("patches", "image patches"))
        if passes[what]
    ]
    return (
        f"{passes['num_contents']:,.0f} contents were encoded in {passes['num_passes']:,.0f} passes, one an "
        f"image: {' and '.join(ratios)} than one by one"
    )
