"""A suite run from end to end with an encoder that tells nothing apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muco.core import TurnEmbeddings, TurnEncoder
from muco.evaluation.embedding_store import EmbeddingStore
from muco.evaluation.encode import CachedEmbedder
from muco.evaluation.suite import run_suite
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.datasets.scenes.suite import TASKS, ScenesSuite
from muco.plugins.packers.multi_turn import MultiTurn
from tests.helpers.small import SMALL, TEXTS


class OnePoint(nn.Module):
    """A pooler that maps every turn to one direction."""

    embedding_dim = 8

    def forward(self, states):
        vectors = torch.ones(len(states.ids), 8) / 8**0.5
        return TurnEmbeddings.join(vectors, states.ids)


def test_a_collapsed_model_scores_chance_on_every_task(tmp_path):
    backbone = QwenVL.build(QwenVL.Config(**SMALL), texts=TEXTS)
    packer = MultiTurn(MultiTurn.Config(system=""))
    suite = ScenesSuite(ScenesSuite.Config(num_queries=4))
    with EmbeddingStore(tmp_path / "vectors", {}, dim=8) as store:
        model = TurnEncoder(backbone, OnePoint())
        encoder = CachedEmbedder(model, packer, store, batch_tokens=4096, join_turns=True)
        shared, first = (
            run_suite(
                "scenes",
                suite,
                encoder,
                ties=ties,
                gallery_queries=0,
                depends_on={},
                track=lambda task: lambda windows, _: windows,
            )
            for ties in ("share", "first")
        )
    for (result, _), expected in ((shared, 0.1), (first, 1.0)):
        assert set(result.tasks) == set(TASKS)
        for task in result.tasks.values():
            assert task.score == pytest.approx(expected)
            assert task.chance == pytest.approx(0.1)
            assert task.tied_share == 1
    assert len(shared[0].warnings) == len(TASKS)
    assert shared[0].metrics()["scenes/mean"] == pytest.approx(0.1)
