"""Random turns for tests of losses and poolers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from muco.core import TurnEmbeddings, TurnIds, TurnKey


def random_turns(
    turn_counts: Sequence[int],
    seed: int,
    *,
    dim: int = 6,
    num_contents: int | None = None,
    num_negatives: int = 0,
    num_forms: int = 1,
) -> tuple[TurnEmbeddings, TurnEmbeddings]:
    """Return float64 queries and shuffled targets of samples with these numbers of turns, in each form.

    Contents are drawn from `num_contents`; None gives every turn its own.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    turns = [(sample, turn) for sample, count in enumerate(turn_counts) for turn in range(count)]
    keys = [
        TurnKey(
            sample_id=sample,
            turn_id=turn,
            group_id=sample % 7,
            content_id=row if num_contents is None else draw(num_contents),
            task_id=turn,
        )
        for row, (sample, turn) in enumerate(turns)
    ]
    keys = [replace(key, form_id=form) for key in keys for form in range(num_forms)]
    extra = [
        TurnKey(
            sample_id=keys[index % len(keys)].sample_id,
            turn_id=keys[index % len(keys)].turn_id,
            group_id=keys[index % len(keys)].group_id,
            content_id=(num_contents or len(keys)) + index,
            task_id=0,
            is_negative=True,
        )
        for index in range(num_negatives)
    ]
    order = torch.randperm(len(keys) + len(extra), generator=generator)
    query = TurnEmbeddings.join(_vectors(len(keys), dim, generator), TurnIds.of(keys))
    target = TurnEmbeddings.join(_vectors(len(keys) + len(extra), dim, generator), TurnIds.of(keys + extra))
    return query, target.select(order)


def _vectors(number: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    vectors = F.normalize(torch.randn(number, dim, generator=generator, dtype=torch.float64), dim=-1)
    return vectors.requires_grad_()
