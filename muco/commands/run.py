"""`muco run`: train, evaluate and report what a recipe says."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from muco.commands.only_command import only_command
from muco.config.recipe import Recipe
from muco.console import Terminal, print_metrics, quiet_libraries
from muco.core.errors import MucoError
from muco.distributed.fsdp import check_launch
from muco.distributed.ranks import Ranks, explain_failed_exchange
from muco.evaluation.score import score
from muco.io.atomic import atomic_folder
from muco.job import assemble
from muco.model.folder import load_encoder, load_model
from muco.report.page import write_report
from muco.run_folder import Only, RunFolder, Summary, environment, with_scores
from muco.training.checkpoint import Checkpoint, Origin, Progress, checkpoints
from muco.training.data import data_fingerprints
from muco.training.early_stopping import best_of, must_stop
from muco.training.probe import blind_probe
from muco.training.trainer import Trainer


def run(
    recipe: Recipe,
    *,
    folder: Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    only: Only | None = None,
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Train, evaluate and report; return what summary.json holds, None in all processes but the main one.

    The arguments are the options of `muco run`: `folder` is by default `runs/<name>`, and `only` names one
    part of the run. Raise MucoError for what the user can fix, another run in the folder among it.
    """
    start = time.perf_counter()
    run_folder = RunFolder(folder or Path("runs") / recipe.name)
    check_launch(recipe)
    ranks = Ranks.join()
    with explain_failed_exchange(ranks), only_command(run_folder.path, ranks):
        console = (console or Terminal()) if ranks.is_main else Terminal(quiet=True)
        if fresh and ranks.is_main:
            run_folder.clear()
        ranks.wait()
        origin = Origin(recipe.dump(), data_fingerprints(recipe.data))
        summary = run_folder.check(recipe, origin.data, resume=resume, only=only)
        ranks.wait()
        if summary is not None:
            console.print(f"{run_folder.path}: this run is done; --fresh runs it again")
            if ranks.is_main and not (run_folder.path / "report.html").is_file():
                write_report(run_folder.path)  # a kill came before it
        else:
            summary = _run(recipe, origin, run_folder, only, console, ranks, start)
        if summary is not None and ranks.is_main:
            print_metrics(summary.metrics, console)
            console.print(
                f"{summary.steps} steps, {summary.pairs_seen:,} pairs, {summary.wall_seconds:.0f} s. "
                f"Report: {run_folder.path / 'report.html'}"
            )
        return None if summary is None else asdict(summary)


def _run(
    recipe: Recipe,
    origin: Origin,
    run_folder: RunFolder,
    only: Only | None,
    console: Console,
    ranks: Ranks,
    start: float,
) -> Summary | None:
    quiet_libraries()
    if num_threads := run_folder.num_threads():
        # Sums split over another number of threads round differently.
        torch.set_num_threads(num_threads)
    train, evaluate = only != "evaluate", only != "train"
    job = assemble(
        recipe, run_folder.path, origin, train=train, evaluate=evaluate, console=console, ranks=ranks
    )
    if ranks.is_main:
        run_folder.write("recipe.yaml", origin.recipe)
        run_folder.write("environment.json", environment())
        if train:
            run_folder.write("data.json", origin.data)
    scores, probed = dict[str, float](), dict[str, float]()
    if job.trainer is not None:
        _train(recipe, job.trainer, run_folder)
        if recipe.train.blind_probe and ranks.is_main:
            encoder, trainer = load_encoder(recipe.model, run_folder.model), job.trainer
            probed = blind_probe(encoder, trainer.model.loss, trainer.batches, start=job.progress.step)
        job.trainer = None  # Its weights make room for those that are evaluated.
    if evaluate:
        ranks.wait()
        model = load_model(recipe.model, run_folder.model)
        scores = score(model, job.suites, recipe.evaluate, run_folder, console, ranks) or {}
    if not ranks.is_main:
        return None
    before = run_folder.summary()
    if before is not None and only is not None and before.steps == job.progress.step:
        scores = with_scores(before.metrics, scores)
    scores |= probed
    earlier = before.wall_seconds if before is not None and only == "evaluate" else 0.0
    summary = Summary(
        name=recipe.name,
        steps=job.progress.step,
        samples_seen=job.progress.samples_seen,
        pairs_seen=job.progress.pairs_seen,
        train_seconds=round(job.progress.train_seconds, 2),
        wall_seconds=round(earlier + time.perf_counter() - start, 2),
        metrics=scores,
        model_step=_model_step(recipe, job.progress),
        stopped_early=must_stop(recipe.train.early_stopping, job.progress.early_stopping)
        and job.progress.step < recipe.train.num_steps,
    )
    run_folder.write_summary(summary)
    write_report(run_folder.path)
    return summary


def _train(recipe: Recipe, trainer: Trainer, run_folder: RunFolder) -> None:
    """Train to the last step and copy the last or best checkpoint's model to where the run's model is."""
    step = trainer.progress.step
    if step:
        trainer.console.print(f"resuming after step {step}")
    trainer.console.print(f"{recipe.name}: {trainer.describe()}")
    if not trainer.is_done:
        trainer.train()
    if trainer.ranks.is_main:
        source = _checkpoint_of(_model_step(recipe, trainer.progress), run_folder)
        with atomic_folder(run_folder.model, replace=True, inside=run_folder.path) as partial:
            shutil.copytree(source.folder / "model", partial, dirs_exist_ok=True)


def _model_step(recipe: Recipe, progress: Progress) -> int:
    """Return the step whose checkpoint has the run's model."""
    best = best_of(progress.best, recipe.train.keep_best)
    return progress.step if best is None else best.step


def _checkpoint_of(step: int, run_folder: RunFolder) -> Checkpoint:
    for checkpoint in checkpoints(run_folder.path):
        if checkpoint.step == step:
            return checkpoint
    raise MucoError(
        f"{run_folder.path}: the checkpoint of step {step}, the best by train.keep_best, is not there any "
        "more. Put it back, or continue with --resume --set train.keep_best=null to take the last one."
    )
