"""From a recipe to the parts of a run; the one place where names become objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from muco.config.recipe import Recipe
from muco.core.errors import DataError, MucoError
from muco.core.packer import Packer
from muco.core.sampler import Sampler
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
    missing = _missing_shards(recipe) if shards else []
    for place, ref in enumerate(recipe.evaluate.suites if suites else ()):
        suite: Suite = make(ref)
        try:
            suite.verify_data()
        except DataError as error:
            missing.append(f"  evaluate.suites.{place} ({ref.name}): {error}")
    if missing:
        raise DataError(f"{recipe.name}: data is missing\n" + "\n".join(missing))


def _missing_shards(recipe: Recipe) -> list[str]:
    missing: list[str] = []
    for name, settings in recipe.data.items():
        place = settings.shards or ""
        if place and "://" not in place and not Path(place).expanduser().is_dir():
            how = settings.how_to_get or "`muco data prepare` makes shards; docs/shards.md has the layout."
            missing.append(f"  data.{name}: {place} is not there.\n    {how.strip()}")
    return missing


def build_sampler(recipe: Recipe, readers: Mapping[str, ShardReader]) -> Sampler:
    """Return the sampler.

    Raises:
        MucoError: it was made for other data; or an epoch would end in a batch of one sample, which has
            no negative.
    """
    sampler: Sampler = make(recipe.sampler)
    sampler.verify_data({name: reader.index.fingerprint for name, reader in readers.items()})
    catalog = {name: len(reader) for name, reader in readers.items()}
    size = recipe.train.global_batch_size
    last = sampler.num_batches(catalog, batch_size=size) - 1
    plan = sampler.plan(catalog, batch_size=size, seed=recipe.seed, epoch=0, position=last)
    if len(plan.samples) == 1 and recipe.train.num_steps > last:
        raise MucoError(
            f"train.global_batch_size: {sum(catalog.values()):,} samples in batches of {size} leave one for "
            "the last batch of an epoch, and one sample has no negatives. Take another batch size."
        )
    return sampler


def build_packer(recipe: Recipe) -> Packer:
    """Return the packer."""
    return make(recipe.packer)
