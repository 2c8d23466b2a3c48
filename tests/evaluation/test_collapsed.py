"""A suite run from end to end with an encoder that tells nothing apart."""

from __future__ import annotations

import pytest
import torch

from muco.core import Content, MucoError, Pooler, Suite, Task, TurnEncoder
from muco.evaluation.embedding_store import EmbeddingStore
from muco.evaluation.encode import CachedEmbedder
from muco.evaluation.suite import run_suite
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.datasets.scenes.suite import TASKS, ScenesSuite
from muco.plugins.packers.multi_turn import MultiTurn
from tests.helpers.small import SMALL, TEXTS


class OnePoint(Pooler):
    """A pooler that maps every turn to one direction."""

    embedding_dim = 8

    def pool(self, states):
        return torch.ones(len(states.ids), 8)


@pytest.fixture
def run(tmp_path):
    backbone = QwenVL.build(QwenVL.Config(**SMALL), texts=TEXTS)
    packer = MultiTurn(MultiTurn.Config(system=""))
    with EmbeddingStore(tmp_path / "vectors", {}, dim=8) as store:
        model = TurnEncoder(backbone, OnePoint())
        encoder = CachedEmbedder(model, packer, store, batch_tokens=4096, join_turns=True)

        def run(suite, ties="share"):
            return run_suite(
                "scenes",
                suite,
                encoder,
                ties=ties,
                gallery_queries=0,
                depends_on={},
                track=lambda task: lambda windows, _: windows,
            )

        yield run


def test_a_collapsed_model_scores_chance_on_every_task(run):
    suite = ScenesSuite(ScenesSuite.Config(num_queries=4))
    shared, first = run(suite), run(suite, "first")
    for (result, _, queries), expected in ((shared, 0.1), (first, 1.0)):
        assert set(result.tasks) == set(queries) == set(TASKS)
        for task in result.tasks.values():
            assert task.score == pytest.approx(expected)
            assert task.chance == pytest.approx(0.1)
            assert task.tied_share == 1
        for name, each in queries.items():
            assert each.score.tolist() == pytest.approx([expected] * 4), name
            assert each.rank.tolist() == [1] * 4
    assert len(shared[0].warnings) == len(TASKS)
    assert shared[0].metrics()["scenes/mean"] == pytest.approx(0.1)


class GivenTasks(Suite):
    """A suite of the tasks that it is given."""

    def __init__(self, *tasks):
        self._tasks = tasks

    def tasks(self):
        return self._tasks


def test_a_suite_without_task_is_an_error_in_words(run):
    with pytest.raises(MucoError, match="suite scenes has no task"):
        run(GivenTasks())


def test_an_empty_candidate_is_scored_and_named(run):
    pool = [Content("red"), Content("")]
    result, *_ = run(
        GivenTasks(Task("t", "m", [Content("q")], pool, None, [[0]], warnings=("one is empty",)))
    )
    assert result.tasks["t"].score == 0.5
    assert "one is empty" in result.warnings
