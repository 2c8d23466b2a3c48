"""From a recipe to the parts of a run; the one place where names become objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from muco.config.recipe import Recipe
from muco.core.errors import DataError, MucoError
from muco.core.packer import Packer
from muco.core.sampler import Catalog, Sampler
from muco.core.source import Source
from muco.core.suite import Suite
from muco.data.prepare.cached import cached_shards
from muco.data.prepare.convert import ShowProgress
from muco.data.shards.reader import ShardReader
from muco.model.build import make


def open_data(recipe: Recipe, progress: ShowProgress) -> dict[str, ShardReader]:
    """Return a reader for each data set, making shards that a source is to provide.

    Raises:
        MucoError: shards that are not there, or do not fit their index.
    """
    verify_data(recipe, suites=False)
    readers = {}
    for name, settings in recipe.data.items():
        if settings.source is not None:
            source: Source = make(settings.source)
            place = cached_shards(settings.source.name, settings.source.config, source, progress)
        else:
            place = cast(str, settings.shards)
        readers[name] = ShardReader(
            place,
            columns=settings.columns,
            cache_bytes=int(settings.cache_gib * 2**30),
            dataset=name,
        )
    return readers


def verify_data(recipe: Recipe, *, shards: bool = True, suites: bool = True) -> None:
    """Raise DataError that names all that a run would find missing, and how to get it.

    Args:
        recipe: the run's.
        shards: whether training data are looked for.
        suites: whether the suites' data are.
    """
    missing = {**(missing_shards(recipe) if shards else {}), **(missing_suites(recipe) if suites else {})}
    if missing:
        lines = [f"  {path}: {message}".replace("\n", "\n    ") for path, message in missing.items()]
        raise DataError(f"{recipe.name}: data is missing\n" + "\n".join(lines))


def missing_shards(recipe: Recipe) -> dict[str, str]:
    """Return, by key of the recipe, which folders of shards are not there and how to get them."""
    missing: dict[str, str] = {}
    for name, settings in recipe.data.items():
        shards = settings.shards or ""
        if shards and "://" not in shards and not Path(shards).expanduser().is_dir():
            how = settings.how_to_get or "`muco data prepare` makes shards; docs/shards.md has the layout."
            missing[f"data.{name}"] = f"{shards} is not there.\n{how.strip()}"
    return missing


def missing_suites(recipe: Recipe) -> dict[str, str]:
    """Return, by key of the recipe, which data of the suites are not there and how to get them."""
    missing: dict[str, str] = {}
    for index, ref in enumerate(recipe.evaluate.suites):
        suite: Suite = make(ref)
        try:
            suite.verify_data()
        except DataError as error:
            missing[f"evaluate.suites.{index}"] = f"{ref.name}: {error}"
    return missing


def build_sampler(recipe: Recipe, readers: Mapping[str, ShardReader]) -> Sampler:
    """Return the sampler.

    Raises:
        MucoError: it was made for other data; or an epoch would end in a batch of one sample, which has
            no negative.
    """
    sampler: Sampler = make(recipe.sampler)
    sampler.verify_data({name: reader.index.fingerprint for name, reader in readers.items()})
    check_last_batch(recipe, sampler, {name: len(reader) for name, reader in readers.items()})
    return sampler


def check_last_batch(recipe: Recipe, sampler: Sampler, catalog: Catalog) -> None:
    """Raise MucoError if the sampler does not fit the data, or an epoch ends in a batch of one sample.

    Args:
        recipe: the run's.
        sampler: its sampler.
        catalog: samples by data set.
    """
    size = recipe.train.global_batch_size
    last = sampler.num_batches(catalog, batch_size=size) - 1
    plan = sampler.plan(catalog, batch_size=size, seed=recipe.seed, epoch=0, position=last)
    if len(plan.samples) == 1 and recipe.train.num_steps > last:
        raise MucoError(
            f"train.global_batch_size: {sum(catalog.values()):,} samples in batches of {size} leave one for "
            "the last batch of an epoch, and one sample has no negatives. Take another batch size."
        )


def build_packer(recipe: Recipe) -> Packer:
    """Return the packer."""
    return make(recipe.packer)
