"""`muco run --probe blind`: measure a trained run without its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from muco.config.recipe import Recipe
from muco.console import quiet_libraries
from muco.core.errors import MucoError
from muco.distributed.ranks import Ranks
from muco.job import assemble
from muco.model.folder import load_encoder
from muco.report.page import write_report
from muco.run_folder import RunFolder, with_scores
from muco.training.checkpoint import Origin
from muco.training.data import data_fingerprints
from muco.training.probe import NUM_BATCHES, blind_probe


def probe(recipe: Recipe, *, folder: Path | None = None, console: Console) -> dict[str, float]:
    """Measure; print the figures and add them to summary.json and the report.

    They are `probe/blind`, `probe/sighted` and `probe/chance`; see `blind_probe`. `folder` is by default
    `runs/<name>`. Raise MucoError if the run is not done, or the folder is another run's.
    """
    quiet_libraries()
    run_folder = RunFolder(folder or Path("runs") / recipe.name)
    summary = run_folder.summary()
    if summary is None:
        raise MucoError(f"{run_folder.path}: no finished run to probe; run the recipe without --probe first")
    origin = Origin(recipe.dump(), data_fingerprints(recipe.data))
    run_folder.check(recipe, origin.data, resume=True, only=None)
    job = assemble(
        recipe, run_folder.path, origin, train=True, evaluate=False, console=console, ranks=Ranks()
    )
    assert job.trainer is not None
    encoder = load_encoder(recipe.model, run_folder.model)
    # Training did not see these batches.
    metrics = blind_probe(encoder, job.trainer.model.loss, job.trainer.batches, start=summary.steps)
    run_folder.write_summary(replace(summary, metrics=with_scores(summary.metrics, metrics)))
    write_report(run_folder.path)
    blind, sighted, chance = (metrics[f"probe/{name}"] for name in ("blind", "sighted", "chance"))
    console.print(
        f"{recipe.name}: in-batch precision@1 over {NUM_BATCHES} batches: {blind:.1%} without the images, "
        f"{sighted:.1%} with them, {chance:.1%} by chance"
    )
    return metrics
