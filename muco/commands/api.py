"""Train and evaluate from Python: what `muco run` and `muco evaluate` do, without a subprocess."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from muco.commands.evaluate import evaluate as run_evaluation
from muco.commands.run import run
from muco.config.load import load_recipe, validate_settings
from muco.config.recipe import Recipe
from muco.embedder.embedder import Embedder
from muco.embedder.load import load
from muco.model.source import find_model
from muco.run_folder import RunFolder, Summary


@dataclass(frozen=True)
class RunResult:
    """A run that ended."""

    folder: Path
    """The run folder, with weights, log, scores and report."""
    summary: Summary | None
    """Steps, pairs, times and scores; None in all processes but the main one."""

    def load(self, *, device: str | None = None) -> Embedder:
        """Return the trained model; see `muco.load`."""
        return load(self.folder, device=device)


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    console: Console | None = None,
    **overrides: Any,
) -> RunResult:
    """Train, evaluate and report what a recipe says.

    Args:
        recipe: a recipe, its keys as a mapping, a file, or the name of a shipped one: "quickstart".
        folder: the run folder; by default `runs/<name>` in the working folder.
        resume: go on from the last checkpoint.
        fresh: remove the run that is in the folder first.
        console: where messages go; by default the terminal.
        overrides: dotted keys and their values: `**{"train.num_steps": 10}`.

    Raises:
        RecipeError: the recipe has problems; the error lists all of them.
        MucoError: something else that the user can fix; another run in the folder among it.
        TypeError: a value of `overrides` is of a type that a recipe cannot hold.
        ValueError: both `resume` and `fresh` are given.
    """
    if resume and fresh:
        raise ValueError("resume continues a run and fresh starts again: choose one")
    texts = _as_set_options(overrides)
    if isinstance(recipe, str | Path):
        loaded = load_recipe(str(recipe), texts)
    else:
        values = recipe.dump() if isinstance(recipe, Recipe) else deepcopy(dict(recipe))
        loaded = validate_settings(Recipe, values, texts, title="muco.train")
    path = Path(folder or Path("runs") / loaded.name)
    run(loaded, folder=path, resume=resume, fresh=fresh, console=console)
    return RunResult(path, RunFolder(path).summary())


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a model on a suite."""

    folder: Path
    """Holds `eval/` with every task's result, and report.html."""
    metrics: dict[str, float]
    """Averages and tasks by name, `scenes/mean`; empty in all processes but the main one."""


def evaluate(
    model: str | Path,
    suite: str,
    *,
    data: str | Path | None = None,
    to: str | Path | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> EvaluationResult:
    """Score a model on one suite and write result and report.

    Args:
        model: a run folder, a model folder, or a backbone's name.
        suite: the suite's name.
        data: its folder, where it has one.
        to: where results go; by default into the run's folder, else to `runs/<name>`.
        console: where messages go; by default the terminal.
        overrides: dotted keys and their values: `**{"evaluate.suites.0.num_queries": 8}`.

    Raises:
        MucoError: something that the user can fix.
    """
    source = find_model(str(model))
    folder = Path(to) if to is not None else source.run or Path("runs") / source.values["name"]
    metrics = run_evaluation(
        str(model),
        suite,
        data=None if data is None else Path(data),
        overrides=_as_set_options(overrides),
        to=folder,
        console=console,
    )
    return EvaluationResult(folder, metrics or {})


def _as_set_options(overrides: Mapping[str, Any]) -> list[str]:
    """Return values as `--set` takes them; raise TypeError for a type that a recipe cannot hold."""
    return [f"{key}={_yaml(key, value)}" for key, value in overrides.items()]


def _yaml(key: str, value: Any) -> str:
    plain = str(value) if isinstance(value, Path) else value
    try:
        text = yaml.safe_dump(plain, default_flow_style=True, width=2**31)
    except yaml.YAMLError:
        raise TypeError(
            f"{key} is {type(value).__name__}: give a text, a number, a list or a dict of Python's own types"
        ) from None
    return text.removesuffix("\n").removesuffix("...").strip()
