"""`muco evaluate`: score the model of a run, a model folder or a pretrained backbone on a suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from muco.commands.only_command import only_command
from muco.config.recipe import Evaluation
from muco.console import Terminal, print_metrics
from muco.core.errors import MucoError, RecipeError
from muco.distributed.ranks import Ranks, explain_failed_exchange
from muco.evaluation.score import score
from muco.evaluation.suite import NamedSuite, make_suites
from muco.job import verify_data
from muco.model.source import ModelSource, find_model
from muco.report.page import write_report
from muco.run_folder import RunFolder, environment, with_scores


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

    The arguments are the options of `muco evaluate`. Return averages and tasks by name, in the main process.
    """
    ranks = Ranks.join()
    console = (console or Terminal()) if ranks.is_main else Terminal(quiet=True)
    title = f"muco evaluate {model}"
    source = find_model(model)
    settings = {"name": suite} if data is None else {"name": suite, "data": str(data)}
    try:
        evaluation = source.evaluation(title, suites=[settings], overrides=overrides)
    except RecipeError as error:
        raise error.naming_option("evaluate.suites.0.data", "--data") from None
    suites = make_suites(evaluation.evaluate)
    verify_data(title, {}, suites)
    run_folder = RunFolder(to or source.run or Path("runs") / evaluation.name)
    with explain_failed_exchange(ranks), only_command(run_folder.path, ranks):
        metrics = _score(suites, evaluation, source, run_folder, console, ranks)
    if metrics is not None:
        print_metrics(metrics, console)
        console.print(f"Report: {run_folder.path / 'report.html'}")
    return metrics


def _score(
    suites: Sequence[NamedSuite],
    evaluation: Evaluation,
    source: ModelSource,
    run_folder: RunFolder,
    console: Console,
    ranks: Ranks,
) -> dict[str, float] | None:
    """Score the model and write result and report; return averages and tasks, in the main process."""
    loaded = source.load(evaluation.model)
    if ranks.is_main:
        for each in suites:
            settings = {"suite": each.settings, "ties": evaluation.evaluate.ties, **evaluation.model.dump()}
            run_folder.check_settings(each.name, settings)
        _prepare(run_folder, evaluation, source, loaded.weights)
    ranks.wait()
    metrics = score(loaded, suites, evaluation.evaluate, run_folder, console, ranks)
    if metrics is None:
        return None
    summary = run_folder.summary()
    if summary is not None:
        run_folder.write_summary(replace(summary, metrics=with_scores(summary.metrics, metrics)))
    write_report(run_folder.path)
    return metrics


def _prepare(run_folder: RunFolder, evaluation: Evaluation, source: ModelSource, weights: str) -> None:
    """Write settings and environment, unless this is the model's run; refuse a folder of others."""
    path, problem = run_folder.path, ""
    if run_folder.recipe() is not None:
        if source.folder is not None and source.folder.resolve() == run_folder.model.resolve():
            return
        problem = "is a run, with results of its own model"
    elif (old := run_folder.read("evaluation.yaml")) is not None:
        changed = [kind for kind, settings in evaluation.model.dump().items() if old.get(kind) != settings]
        others = [suite for suite, scored in run_folder.scored_weights().items() if scored != weights]
        if changed:
            problem = f"holds results of another model, with another {' and '.join(changed)}"
        elif others:
            problem = f"holds results of other weights ({', '.join(others)}) in {run_folder.eval}"
    # A kill may leave the partial file of evaluation.yaml; the next write removes it.
    elif path.is_dir() and not all(file.name.endswith(".partial") for file in path.iterdir()):
        problem = "holds other files"
    if problem:
        raise MucoError(f"{path} {problem}. Give these results a folder of their own with --to.")
    run_folder.write("evaluation.yaml", evaluation.dump())
    run_folder.write("environment.json", environment())
