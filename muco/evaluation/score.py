"""Score an encoder on suites and write the results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from muco.config.recipe import EvaluateSettings
from muco.console import progress_bar
from muco.model.build import make
from muco.model.source import Parts, device_of_this_process
from muco.run_folder import RunFolder, versions

if TYPE_CHECKING:
    from muco.core.encoder import TurnEncoder
    from muco.distributed.ranks import Ranks
    from muco.evaluation.encode import CachedEmbedder


def score(
    encoder: TurnEncoder,
    parts: Parts,
    weights: dict[str, Any],
    settings: EvaluateSettings,
    place: RunFolder,
    console: Console,
    ranks: Ranks,
) -> dict[str, float] | None:
    """Run the suites of `settings`, write their results to `place`, and return averages and tasks by name.

    Args:
        encoder: the model; it is moved to this process's device.
        parts: what it is made of.
        weights: `weights`, a hash, and what else says which they are.
        settings: which suites, and how.
        place: the folder of the results; embeddings are kept there too.
        console: what is told.
        ranks: the processes that share the work; None is returned in all but the main one.

    Raises:
        MucoError: something that the user can mend.
    """
    from muco.evaluation.results import write_results
    from muco.evaluation.suite import run_suite

    metrics: dict[str, float] = {}
    with open_embedder(encoder, parts, weights, settings, place.eval / "vectors", console, ranks) as (
        embedder,
        about,
    ):
        for ref in settings.suites:
            results = run_suite(
                ref.name,
                make(ref),
                embedder,
                ties=settings.ties,
                gallery_queries=settings.gallery_queries,
                depends_on={**weights, "suite": ref.dump(), "ties": settings.ties, **about},
                track=lambda task: lambda windows, number: progress_bar(windows, number, task, console),
            )
            if results is None:
                continue
            scores, gallery = results
            write_results(place.eval, scores, gallery)
            metrics |= scores.metrics()
            for warning in scores.warnings:
                console.print(f"warning: {warning}", style="yellow", highlight=False)
    return metrics if ranks.is_main else None


@contextmanager
def open_embedder(
    encoder: TurnEncoder,
    parts: Parts,
    weights: dict[str, Any],
    settings: EvaluateSettings,
    folder: Path,
    console: Console,
    ranks: Ranks,
) -> Iterator[tuple[CachedEmbedder, dict[str, Any]]]:
    """Yield what embeds contents, with a store of its own in `folder`, and what its vectors depend on.

    Raises:
        MucoError: the store is damaged, or another process is writing it.
    """
    from muco.evaluation.embedding_store import EmbeddingStore
    from muco.evaluation.encode import CachedEmbedder

    device = device_of_this_process()
    join_turns = settings.join_turns and "isolated_turns" in parts.backbone.cls.offers(parts.backbone.config)
    about = {
        "weights": weights["weights"],
        **parts.dump(),
        "join_turns": join_turns,
        "store": settings.embedding_dtype,
        "device": device.type,
        "versions": versions(),
    }
    key = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
    dim = encoder.pooler.embedding_dim
    ranks.wait()
    with EmbeddingStore(
        folder / key, about, dim=dim, dtype=settings.embedding_dtype, part=ranks.rank
    ) as store:
        ranks.wait()  # no process adds before all have seen what there was
        embedder = CachedEmbedder(
            encoder.to(device),
            make(parts.packer),
            store,
            batch_tokens=settings.batch_tokens,
            join_turns=join_turns,
            ranks=ranks,
        )
        yield embedder, about
    passes = ranks.sums(asdict(embedder.passes), device)
    _tell_cuts(passes, console)
    _tell_passes(passes, console)


def _tell_cuts(passes: dict[str, float], console: Console) -> None:
    """Say how many texts the model saw no more than the beginning of."""
    if passes["cut_texts"]:
        console.print(
            f"warning: of {passes['num_contents']:,.0f} encoded contents {passes['cut_texts']:,.0f} have a "
            "text longer than the backbone's context; it was cut",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _tell_passes(passes: dict[str, float], console: Console) -> None:
    """Say what one pass an image saved, counted in what was encoded: seconds depend on more."""
    if passes["num_passes"] == passes["num_contents"]:
        return
    ratios = [
        f"{passes[f'{what}_alone'] / passes[what]:.2f} times fewer {name} ({passes[what]:,.0f}, not "
        f"{passes[f'{what}_alone']:,.0f})"
        for what, name in (("tokens", "tokens"), ("patches", "image patches"))
        if passes[what]
    ]
    console.print(
        f"{passes['num_contents']:,.0f} contents were encoded in {passes['num_passes']:,.0f} passes, one an "
        f"image: {' and '.join(ratios)} than one by one",
        highlight=False,
        soft_wrap=True,
    )
