"""`muco evaluate`: suites over a model, be it a run's, a model folder, or a backbone as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from muco.config.load import validate_evaluation
from muco.config.recipe import Evaluation
from muco.console import Terminal, tell
from muco.core.errors import MucoError
from muco.evaluation.score import score
from muco.model.source import ModelSource, Parts, find_model
from muco.run_folder import RunFolder, with_scores

if TYPE_CHECKING:
    pass


def evaluate(
    model: str,
    suite: str,
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    to: Path | None = None,
    console: Console | None = None,
) -> dict[str, float] | None:
    """Score a model on one suite and write result and report.

    Args:
        model: a run folder, a model folder, or a backbone's name.
        suite: the suite's name.
        data: its folder, where it has one.
        overrides: `KEY=VALUE` each, of the evaluation's keys: `evaluate.suites.0.num_queries=8`.
        to: where results go; by default into the run's folder, else to `runs/<name>`.
        console: what is told; by default the terminal.

    Returns:
        Averages and tasks by name; None in a process that only helps the main one.

    Raises:
        MucoError: something that the user can mend.
    """
    console = console or Terminal()
    from muco.distributed.ranks import Ranks
    from muco.model.build import make

    ranks = Ranks.join()
    source = find_model(model)
    wanted: dict[str, Any] = {"name": suite, **({} if data is None else {"data": str(data)})}
    values = {**source.values, "evaluate": {**source.values.get("evaluate", {}), "suites": [wanted]}}
    asked = validate_evaluation(values, overrides, title=f"muco evaluate {model}")
    for ref in asked.evaluate.suites:
        make(ref).verify_data()
    place = RunFolder(to or source.results or Path("runs") / asked.name)
    console = console if ranks.is_main else Terminal(quiet=True)
    encoder, weights = source.load(Parts.of(asked))
    if ranks.is_main:
        _prepare(place, asked, source, weights["weights"])
    ranks.wait()
    metrics = score(encoder, Parts.of(asked), weights, asked.evaluate, place, console, ranks)
    if metrics is None:
        return None
    before = place.summary()
    if before is not None:
        place.write_summary(replace(before, metrics=with_scores(before.metrics, metrics)))

    from muco.report.page import write_report

    tell(metrics, console)
    console.print(f"Report: {write_report(place.path)}", highlight=False, soft_wrap=True)
    return metrics


def _prepare(place: RunFolder, asked: Evaluation, source: ModelSource, weights: str) -> None:
    """Say in the folder what is evaluated there, unless it is a run's own; refuse one of another model."""
    import torch

    if place.recipe() is not None:
        if source.folder is None or source.folder.resolve() != place.model.resolve():
            raise MucoError(
                f"{place.path} is a run, with results of its own model. Give these results a folder of their "
                "own with --to."
            )
        return
    old = place.evaluation()
    if old is not None:
        changed = [part for part in ("packer", "backbone", "pooler") if old.get(part) != asked.dump()[part]]
        if changed:
            raise MucoError(
                f"{place.path} holds results of another model, with another {' and '.join(changed)}. "
                "Give these results a folder of their own with --to."
            )
        others = [suite for suite, scored in place.scored_weights().items() if scored != weights]
        if others:
            raise MucoError(
                f"{place.path} holds results of other weights ({', '.join(others)}). Give these results a "
                f"folder of their own with --to, or remove {place.eval}."
            )
    elif place.path.is_dir() and any(place.path.iterdir()):
        raise MucoError(f"{place.path} holds other files; give the results a folder of their own with --to")
    place.write_evaluation(asked)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place.write_environment(device=device, num_threads=torch.get_num_threads())
