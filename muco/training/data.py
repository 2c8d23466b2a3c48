"""The training data of a recipe: which is missing, a reader for each data set, and the sampler over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from os.path import expanduser
from pathlib import Path

from muco.config.recipe import DatasetSettings, Recipe
from muco.core.errors import DataError, MucoError
from muco.core.sampler import Catalog, Sampler
from muco.core.source import Source
from muco.data.prepare.cached import cached_shards, source_fingerprint
from muco.data.progress import ShowProgress
from muco.data.shards.reader import ShardReader

_SAMPLES_CHECKED = 64
"""Samples of each data set whose ids are compared when a run starts."""
_SAMPLES_FOR_TOKENIZER = 2000
"""Samples of each data set whose texts a backbone may train its tokenizer on."""


def missing_shards(data: Mapping[str, DatasetSettings]) -> dict[str, str]:
    """Return, by key of the recipe, which folders of shards are missing and how to get them."""
    how = "`muco data prepare` makes shards; docs/shards.md has the layout."
    return {
        f"data.{name}": f"{settings.shards} is not there.\n{(settings.how_to_get or how).strip()}"
        for name, settings in data.items()
        if _is_missing(settings)
    }


def data_fingerprints(data: Mapping[str, DatasetSettings]) -> dict[str, str]:
    """Return a hash of each data set that changes with its samples; unreadable data sets are left out."""
    fingerprints: dict[str, str] = {}
    for name, settings in data.items():
        with suppress(DataError):
            fingerprints[name] = _fingerprint(settings)
    return fingerprints


def open_data(data: Mapping[str, DatasetSettings], progress: ShowProgress) -> dict[str, ShardReader]:
    """Return a reader for each data set; a source is converted to shards first, unless they are cached."""
    return {
        name: ShardReader(
            _shards_of(settings, progress),
            columns=settings.columns,
            cache_bytes=int(settings.cache_gib * 2**30),
            dataset=name,
        )
        for name, settings in data.items()
    }


def check_sample_ids(name: str, settings: DatasetSettings, reader: ShardReader) -> None:
    """Raise MucoError if two of the first samples have one id: each would be a positive of the other."""
    first: dict[str, int] = {}
    for index in range(min(len(reader), _SAMPLES_CHECKED)):
        with suppress(DataError):  # training counts samples that cannot be read
            sample_id = reader[index].sample_id
            other = first.setdefault(sample_id, index)
            if other == index:
                continue
            origin = f"The shards {settings.shards}"
            if settings.source is not None:
                package = settings.source.cls.__module__.partition(".")[0]
                origin = f"Source {settings.source.name} of package {package}"
            raise MucoError(
                f"data.{name}: samples {other} and {index} have the same sample_id; each would be a positive "
                f"of the other. {origin} must give each sample an id of its own."
            )


def make_sampler(recipe: Recipe, readers: Mapping[str, ShardReader]) -> Sampler:
    """Return the sampler; raise MucoError if it was made for other data or does not fit the data."""
    sampler: Sampler = recipe.sampler.make()
    sampler.verify_data({name: reader.index.fingerprint for name, reader in readers.items()})
    check_last_batch(recipe, sampler, {name: len(reader) for name, reader in readers.items()})
    return sampler


def check_last_batch(recipe: Recipe, sampler: Sampler, catalog: Catalog) -> None:
    """Raise MucoError if the sampler does not fit the data, or an epoch ends in a batch of one sample."""
    size = recipe.train.global_batch_size
    last = sampler.num_batches(catalog, batch_size=size) - 1
    plan = sampler.plan(catalog, batch_size=size, seed=recipe.seed, epoch=0, position=last)
    if len(plan.samples) == 1 and recipe.train.num_steps > last:
        raise MucoError(
            f"train.global_batch_size: {sum(catalog.values()):,} samples in batches of {size} leave one for "
            "the last batch of an epoch, and one sample has no negatives. Take another batch size."
        )


def texts_of(readers: Iterable[ShardReader]) -> Iterator[str]:
    """Yield the texts that a backbone may train its tokenizer on."""
    for reader in readers:
        for index in islice(range(len(reader)), _SAMPLES_FOR_TOKENIZER):
            for pair in reader[index].pairs:
                yield from (query.text for query in pair.queries)
                yield pair.target.text


def _is_missing(settings: DatasetSettings) -> bool:
    shards = settings.shards or ""
    return bool(shards) and "://" not in shards and not Path(expanduser(shards)).is_dir()


def _shards_of(settings: DatasetSettings, progress: ShowProgress) -> Path | str:
    if settings.source is None:
        assert settings.shards is not None
        return settings.shards
    source: Source = settings.source.make()
    return cached_shards(settings.source.name, settings.source.config, source, progress)


def _fingerprint(settings: DatasetSettings) -> str:
    if settings.source is None:
        assert settings.shards is not None
        if _is_missing(settings):
            raise DataError(f"{settings.shards} is not there")
        return ShardReader(settings.shards, columns=settings.columns).index.fingerprint
    return source_fingerprint(settings.source.name, settings.source.config, settings.source.make())
