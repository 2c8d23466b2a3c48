"""A run from its recipe to its report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from muco.config.recipe import Recipe
from muco.console import Terminal, progress_bar, tell
from muco.core.errors import MucoError
from muco.io.atomic import atomic_folder
from muco.run_folder import RunFolder, Summary, blocks_resume, differences, with_scores

if TYPE_CHECKING:
    from muco.distributed.ranks import Ranks

Only = Literal["train", "evaluate"]


def run(
    recipe: Recipe,
    *,
    folder: Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    only: Only | None = None,
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Train, evaluate and report.

    Args:
        recipe: a validated recipe.
        folder: where the run goes; by default `runs/<name>` of the working folder.
        resume: go on from the last checkpoint.
        fresh: remove the run that is there.
        only: one part of the run.
        console: what is told; by default the terminal.

    Returns:
        The contents of summary.json; None in a process that only helps the main one.

    Raises:
        MucoError: something that the user can mend; another run in the folder among them.
    """
    console = console or Terminal()
    place = RunFolder(folder or Path("runs") / recipe.name)
    began = time.perf_counter()
    with _join_ranks(recipe) as ranks:
        if ranks.is_main:
            if fresh:
                place.clear()
        else:
            console = Terminal(quiet=True)
        ranks.wait()
        done = _look_around(place, recipe, resume, only)
        ranks.wait()
        if done is not None:
            console.print(f"{place.path}: this run is done; --fresh runs it again", highlight=False)
        else:
            done = _run(recipe, place, only, console, began, ranks)
        if done is not None and ranks.is_main:
            _tell(done, place, console)
        return None if done is None else asdict(done)


@contextmanager
def _join_ranks(recipe: Recipe) -> Iterator[Ranks]:
    """Join the processes that a launcher started; where one of them ends, all end with an error."""
    from muco.distributed.failure import explain_failed_exchange
    from muco.distributed.fsdp import check_launch
    from muco.distributed.ranks import Ranks

    check_launch(recipe)
    ranks = Ranks.join()
    with explain_failed_exchange(ranks):
        yield ranks


def _look_around(place: RunFolder, recipe: Recipe, resume: bool, only: Only | None) -> Summary | None:
    """Return the summary of a run that is done; raise where another run is in the way."""
    old = place.recipe()
    if old is None:
        if only == "evaluate":
            raise MucoError(f"{place.path}: no run to evaluate; train it first, without --only evaluate")
        return None
    changed = differences(old, recipe.dump())
    if not changed and only is None and _covers(place.summary(), recipe):
        return place.summary()
    blocking = [each for each in changed if blocks_resume(each, recipe)]
    if blocking:
        raise MucoError(
            f"{place.path} holds another run. Its recipe differs in\n  "
            + "\n  ".join(blocking[:12])
            + "\nGive this run another `--set name=...`, or remove the old one with --fresh."
        )
    if not resume and only != "evaluate":
        raise MucoError(
            f"{place.path} holds an unfinished run of this recipe, or one with other suites. "
            "Go on with --resume, or start over with --fresh."
        )
    return None


def _covers(summary: Summary | None, recipe: Recipe) -> bool:
    """Say whether a summary holds all that the recipe asks for."""
    if summary is None or summary.steps < recipe.train.num_steps:
        return False
    return all(
        any(name.startswith(f"{suite.name}/mean") for name in summary.metrics)
        for suite in recipe.evaluate.suites
    )


def _run(
    recipe: Recipe, place: RunFolder, only: Only | None, console: Console, began: float, ranks: Ranks
) -> Summary | None:
    import torch

    from muco.model.source import quiet_libraries
    from muco.training.build import verify_data
    from muco.training.checkpoint import Progress, checkpoints

    verify_data(recipe, shards=only != "evaluate", suites=only != "train")
    quiet_libraries()
    place.path.mkdir(parents=True, exist_ok=True)
    ran_on = place.environment()
    if ran_on is not None and "num_threads" in ran_on:
        # Sums split over another number of threads round differently.
        torch.set_num_threads(ran_on["num_threads"])
    if ranks.is_main:
        place.write_recipe(recipe)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        place.write_environment(device=device, num_threads=torch.get_num_threads())

    saved = checkpoints(place.path)
    progress = saved[-1].progress() if saved else Progress()
    if only != "evaluate":
        progress = _train(recipe, place, console, ranks)
    scores: dict[str, float] = {}
    if only != "train":
        ranks.wait()
        scores = _evaluate(recipe, place, console, ranks) or {}
    if not ranks.is_main:
        return None
    before = place.summary()
    if before is not None and only is not None and before.steps == progress.step:
        scores = with_scores(before.metrics, scores)
    earlier = before.wall_seconds if before is not None and only == "evaluate" else 0.0
    summary = Summary(
        name=recipe.name,
        steps=progress.step,
        samples_seen=progress.samples_seen,
        pairs_seen=progress.pairs_seen,
        train_seconds=round(progress.train_seconds, 2),
        wall_seconds=round(earlier + time.perf_counter() - began, 2),
        metrics=scores,
    )
    place.write_summary(summary)

    from muco.report.page import write_report

    write_report(place.path)
    return summary


def _train(recipe: Recipe, place: RunFolder, console: Console, ranks: Ranks) -> Any:
    from muco.model.build import build_model, make
    from muco.model.folder import load_pretrained_pooler
    from muco.training.batches import StepBatches
    from muco.training.build import build_packer, build_sampler, open_data
    from muco.training.checkpoint import Progress, checkpoints, restore
    from muco.training.trainer import Trainer

    def show_progress(items: Iterable[Any], number: int, what: str) -> Iterable[Any]:
        return progress_bar(items, number, what, console)

    if ranks.is_main:  # the shards that are missing are made once
        open_data(recipe, show_progress)
    ranks.wait()
    readers = open_data(recipe, show_progress)
    sampler = build_sampler(recipe, readers)
    saved = checkpoints(place.path)
    optimizer_state = None
    if saved:
        progress = saved[-1].progress()
        model, optimizer_state = restore(saved[-1], recipe, make(recipe.loss))
        console.print(f"resuming after step {progress.step}", highlight=False)
    else:
        progress = Progress()
        model = build_model(recipe, readers)
        load_pretrained_pooler(recipe, model.encoder)
    batches = StepBatches(
        readers=readers,
        sampler=sampler,
        packer=build_packer(recipe),
        processor=model.encoder.backbone.processor,
        global_batch_size=recipe.train.global_batch_size,
        seed=recipe.seed,
        max_dialogue_tokens=recipe.train.max_dialogue_tokens,
        rank=ranks.rank,
        num_ranks=ranks.world_size,
    )
    size = sum(weight.numel() for weight in model.encoder.parameters())
    samples = sum(map(len, readers.values()))
    console.print(
        f"{recipe.name}: {size / 1e6:.1f}M parameters, {samples:,} samples, "
        f"{batches.steps_per_epoch} steps an epoch",
        highlight=False,
    )
    if progress.step < recipe.train.num_steps:
        Trainer(recipe, place.path, model, batches, progress, console, ranks, optimizer_state).train()
    if ranks.is_main:
        _publish(place)
    return progress


def _publish(place: RunFolder) -> None:
    """Put the last checkpoint's model where the run's model is looked for."""
    from muco.training.checkpoint import checkpoints

    with atomic_folder(place.model, replace=True) as partial:
        shutil.copytree(checkpoints(place.path)[-1].folder / "model", partial, dirs_exist_ok=True)


def _evaluate(recipe: Recipe, place: RunFolder, console: Console, ranks: Ranks) -> dict[str, float] | None:
    from muco.evaluation.score import score
    from muco.model.folder import load_encoder, trained_steps, weights_hash
    from muco.model.source import Parts

    encoder = load_encoder(recipe, place.model)
    weights = {"weights": weights_hash(place.model), "step": trained_steps(place.model)}
    return score(encoder, Parts.of(recipe), weights, recipe.evaluate, place, console, ranks)


def _tell(summary: Summary, place: RunFolder, console: Console) -> None:
    tell(summary.metrics, console)
    console.print(
        f"{summary.steps} steps, {summary.pairs_seen:,} pairs, {summary.wall_seconds:.0f} s. "
        f"Report: {place.path / 'report.html'}",
        highlight=False,
        soft_wrap=True,
    )
