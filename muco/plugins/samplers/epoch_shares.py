"""Which sample of a data set each visit takes, and how many visits of an epoch it has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError, did_you_mean
from muco.core.ids import stable_id
from muco.core.sampler import Catalog, SampleRef
from muco.plugins.samplers.permutation import permute


class SharesConfig(ComponentConfig):
    """How much of an epoch each data set fills."""

    weights: dict[str, NonNegativeFloat] | None = None
    """Share of each data set by name, in any unit; None takes all samples once an epoch."""
    temperature: PositiveFloat | None = None
    """Instead of weights: shares in proportion to size ** (1 / temperature). 1 leaves them as the sizes are;
    the higher, the more alike they become."""

    @model_validator(mode="after")
    def _one_of_both(self) -> SharesConfig:
        if self.weights is not None and self.temperature is not None:
            raise ValueError("give `weights` or `temperature`, not both")
        return self


def shares_of(config: SharesConfig, catalog: Catalog) -> Mapping[str, float] | None:
    """Return the data sets' weights; None where every sample comes once an epoch."""
    if config.temperature is None:
        return config.weights
    # Of the largest, so that no power of them is beyond a float.
    most = max(catalog.values())
    return {name: (size / most) ** (1 / config.temperature) for name, size in catalog.items()}


def quotas_of(weights: Mapping[str, float] | None, catalog: Catalog) -> dict[str, int]:
    """Return how many samples of each data set an epoch holds.

    Without weights, all of each; with weights as many in sum, in the proportion of the weights.
    """
    if weights is None:
        return dict(catalog)
    for name in weights:
        if name not in catalog:
            near = did_you_mean(name, list(catalog))
            raise MucoError(
                f"sampler.weights: no data set named {name!r}.{near} Data sets: {', '.join(catalog)}"
            )
    shares = {name: weights.get(name, 0.0) for name in catalog}
    whole, length = sum(shares.values()), sum(catalog.values())
    if whole <= 0:
        raise MucoError("sampler.weights: at least one data set needs a weight above zero")
    return {name: round(length * share / whole) for name, share in shares.items()}


def owner_of(sizes: Mapping[str, int], place: int) -> tuple[str, int]:
    """Return whose place it is where each name has its `sizes` in a row, and the place within them."""
    for name, size in sizes.items():
        if place < size:
            return name, place
        place -= size
    raise ValueError(f"no place {place} beyond the end")


def place_in_runs(quotas: Mapping[str, int], place: int, *, run_length: int, key: int) -> tuple[str, int]:
    """Return the data set of a place in the epoch, and the place in that data set's share.

    Each share is cut into runs, and the runs of all are shuffled; what is left of each share after its last
    whole run comes at the end, data set by data set.

    Args:
        quotas: places of each data set.
        place: in the epoch, below the sum of the quotas.
        run_length: places that stand together.
        key: seeds the order of the runs.
    """
    runs = {name: quota // run_length for name, quota in quotas.items()}
    num_runs = sum(runs.values())
    run, offset = divmod(place, run_length)
    if run < num_runs:
        drawn = int(permute(np.array([run], dtype=np.int64), num_runs, seed=key)[0])
        name, run_of_it = owner_of(runs, drawn)
        return name, run_of_it * run_length + offset
    rest = {name: quota % run_length for name, quota in quotas.items()}
    name, offset = owner_of(rest, place - num_runs * run_length)
    return name, runs[name] * run_length + offset


def shuffled_visit(name: str, visit: int, *, size: int, seed: int) -> SampleRef:
    """Return the sample of a data set's visit, counted over all epochs: each lap of `size` takes all once."""
    lap, place = divmod(visit, size)
    key = stable_id("lap", str(seed), name, str(lap))
    return SampleRef(name, int(permute(np.array([place], dtype=np.int64), size, seed=key)[0]))
