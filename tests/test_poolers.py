from __future__ import annotations

import pytest
import torch

from muco.core import TurnIds, TurnKey, TurnPlaces, TurnStates
from muco.testing import check_pooler

# A row of 12 tokens: prefix 0 to 1, one turn of 4 tokens, one of 1, one of 5; embedding tokens 4, 6, 10.
PLACES = TurnPlaces(
    token=torch.tensor([4, 6, 10]), start=torch.tensor([2, 6, 7]), stop=torch.tensor([6, 7, 12])
)
IDS = TurnIds.of([TurnKey(sample_id=0, turn_id=t, group_id=0, content_id=t, task_id=0) for t in range(3)])


@pytest.mark.parametrize("name", ["turn_token", "last_token", "mean"])
def test_keeps_the_contract(registry, name):
    check_pooler(registry, name, {})


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("turn_token", [[4], [6], [10]]),
        ("last_token", [[5], [6], [11]]),
        ("mean", [[2, 3, 4, 5], [6], [7, 8, 9, 10, 11]]),
    ],
)
def test_reads_the_tokens_that_its_name_says(registry, name, rows):
    cls = registry.component("pooler", name)
    hidden = torch.randn(12, 5)
    found = cls(cls.Config(), hidden_dim=5)(TurnStates(hidden=hidden, places=PLACES, ids=IDS))
    expected = torch.stack([hidden[row].mean(0) for row in rows])
    torch.testing.assert_close(found.vectors, torch.nn.functional.normalize(expected, dim=1))
