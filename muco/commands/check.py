"""`muco run --check`: what would stop a run on this machine, checked without building a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from muco.commands.packages import package_problems
from muco.config.recipe import DatasetSettings, Recipe
from muco.core.component_ref import ComponentRef
from muco.core.errors import MucoError, Problem, RecipeError
from muco.core.registry import default_registry
from muco.data.shards.reader import ShardReader
from muco.evaluation.suite import make_suites, missing_suites
from muco.io.checkpoint_name import is_missing_path
from muco.training.data import check_last_batch, missing_shards
from muco.training.trackers import missing_trackers


def check(recipe: Recipe, title: str) -> list[str]:
    """Return what is unusual about a recipe that can run; `title` names it in messages.

    Raise RecipeError with all that is missing on this machine, or does not fit the data.
    """
    suites = make_suites(recipe.evaluate)
    problems = {**_package_problems(recipe), **_missing_checkpoints(recipe), **missing_suites(suites)}
    problems |= missing_trackers(recipe.train.trackers)
    missing = missing_shards(recipe.data)
    sizes: dict[str, int | None] = {}
    for name, settings in recipe.data.items():
        try:
            sizes[name] = None if f"data.{name}" in missing else _num_samples(name, settings)
        except MucoError as error:
            missing[f"data.{name}"] = str(error)
    problems |= missing
    catalog = {name: size for name, size in sizes.items() if size is not None}
    if catalog.keys() == recipe.data.keys():
        try:
            check_last_batch(recipe, recipe.sampler.make(), catalog)
        except MucoError as error:
            problems[""] = str(error)
    if problems:
        raise RecipeError(title, [Problem(path, message) for path, message in problems.items()])
    return list(_notes(recipe, sum(catalog.values()) if len(catalog) == len(recipe.data) else None))


def _num_samples(name: str, settings: DatasetSettings) -> int | None:
    """Return how many samples a data set has; None for shards at a URL."""
    if settings.source is not None:
        return len(settings.source.make())
    shards = settings.shards or ""
    if "://" in shards:
        _check_protocol(shards)
        return None
    return len(ShardReader(shards, columns=settings.columns, dataset=name))


def _check_protocol(url: str) -> None:
    """Raise MucoError if no installed package opens the URL."""
    import fsspec

    try:
        fsspec.get_filesystem_class(url.partition("://")[0])
    except (ImportError, ValueError) as error:
        raise MucoError(f"{url}: {error}") from None


def _package_problems(recipe: Recipe) -> dict[str, str]:
    """Return the packages that muco, or a plugin with a component of the recipe, needs and does not have."""
    refs = [ref for _, ref in _values_of(recipe, "", ComponentRef)]
    providers = {default_registry().find(ref.kind, ref.name).provider.split()[0] for ref in refs}
    return {
        f"package {name}": f"{problem} (needed by {provider})"
        for provider in sorted({"muco"} | providers)
        for name, problem in package_problems(provider).items()
    }


def _missing_checkpoints(recipe: Recipe) -> dict[str, str]:
    """Return, by key, each `pretrained` that reads as a path where nothing is."""
    return {
        path: f"{name}: no such file or folder. Give the path of a checkpoint, or its name on a hub: ORG/NAME"
        for path, name in _values_of(recipe, "", str)
        if path.endswith(".pretrained") and is_missing_path(name)
    }


def _values_of(value: Any, path: str, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each value of a type in a recipe, with its dotted key."""
    if isinstance(value, kind):
        yield path, value
    if isinstance(value, ComponentRef):
        value = value.config
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, tuple):
        value = dict(enumerate(value))
    for key, entry in value.items() if isinstance(value, dict) else ():
        yield from _values_of(entry, f"{path}.{key}" if path else f"{key}", kind)


def _notes(recipe: Recipe, num_samples: int | None) -> Iterator[str]:
    train = recipe.train
    if train.warmup_steps > train.num_steps:
        yield (
            f"train.warmup_steps {train.warmup_steps} is above num_steps {train.num_steps}: the learning "
            "rate does not reach its peak"
        )
    if num_samples is not None and train.global_batch_size > num_samples:
        yield (
            f"train.global_batch_size {train.global_batch_size} is above the {num_samples:,} samples of the "
            f"data: every batch has {num_samples:,}"
        )
