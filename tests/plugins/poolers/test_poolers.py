from __future__ import annotations

import pytest
import torch

from muco.config.load import load_recipe
from muco.core import Content, TurnIds, TurnKey, TurnSpans, TurnStates
from muco.model.build import build_encoder
from muco.model.folder import load_encoder, save_encoder
from muco.testing import check_pooler
from tests.helpers.small import SMALL, TEXTS

# A row of 12 tokens: prefix 0 to 1, one turn of 4 tokens, one of 1, one of 5; embedding tokens 4, 6, 10.
SPANS = TurnSpans(
    token=torch.tensor([4, 6, 10]), start=torch.tensor([2, 6, 7]), stop=torch.tensor([6, 7, 12])
)
IDS = TurnIds.of([TurnKey(sample_id=0, turn_id=t, group_id=0, content_id=t, task_id=0) for t in range(3)])


POOLERS = ["turn_token", "last_token", "mean"]


@pytest.mark.parametrize("name", POOLERS)
@pytest.mark.parametrize("settings", [{}, {"projection_dim": 4}])
def test_keeps_the_contract(registry, name, settings):
    check_pooler(registry, name, settings)


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
    found = cls(cls.Config(), hidden_dim=5)(TurnStates(hidden=hidden, spans=SPANS, ids=IDS))
    expected = torch.stack([hidden[row].mean(0) for row in rows])
    torch.testing.assert_close(found.vectors, torch.nn.functional.normalize(expected, dim=1))


@pytest.mark.parametrize("name", POOLERS)
def test_double_precision_is_kept(registry, name):
    cls = registry.component("pooler", name)
    states = TurnStates(hidden=torch.randn(12, 5, dtype=torch.float64), spans=SPANS, ids=IDS)
    assert cls(cls.Config(), hidden_dim=5)(states).vectors.dtype == torch.float64


@pytest.mark.parametrize("name", POOLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_is_a_linear_map_of_what_is_pooled(registry, name, dtype):
    cls = registry.component("pooler", name)
    plain, projected = (cls(cls.Config(projection_dim=dim), hidden_dim=5) for dim in (None, 3))
    assert (plain.embedding_dim, projected.embedding_dim) == (5, 3)
    assert list(plain.state_dict()) == []
    assert [weight.shape for weight in projected.parameters()] == [(3, 5)]
    states = TurnStates(hidden=torch.randn(12, 5).to(dtype), spans=SPANS, ids=IDS)
    expected = plain.pool(states).float() @ projected.project.weight.T
    found = projected(states).vectors
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=1))
    found.sum().backward()
    assert projected.project.weight.grad.any()


@pytest.mark.parametrize("name", POOLERS)
def test_a_projection_is_saved_with_the_model(registry, name, tmp_path):
    settings = [f"pooler={{name: {name}, projection_dim: 6}}", f"backbone.random_init={SMALL['random_init']}"]
    recipe = load_recipe("quickstart", settings, registry=registry)
    encoder = build_encoder(recipe.model, texts=TEXTS, seed=0)
    save_encoder(encoder, recipe.model, tmp_path / "model", step=1)
    loaded = load_encoder(recipe.model, tmp_path / "model")
    assert torch.equal(loaded.pooler.project.weight, encoder.pooler.project.weight)
    dialogue = recipe.packer.make().inference(Content("a red circle"))
    with torch.no_grad():
        vectors = [
            each.eval()(encoder.backbone.processor.prepare([dialogue])).vectors for each in (encoder, loaded)
        ]
    assert vectors[0].shape == (1, 6)
    assert torch.equal(*vectors)


@pytest.mark.parametrize(("dim", "is_taken"), [(6, True), (5, False)])
def test_a_run_that_starts_from_a_model_folder_has_its_projection(registry, tmp_path, dim, is_taken):
    """Of the same settings; with others it is a new one."""
    pooler, random_init = (
        "pooler={name: mean, projection_dim: %d}",
        f"backbone.random_init={SMALL['random_init']}",
    )
    recipe = load_recipe("quickstart", [pooler % 6, random_init], registry=registry)
    first = build_encoder(recipe.model, texts=TEXTS, seed=0)
    save_encoder(first, recipe.model, tmp_path / "model", step=1)
    begun = ["backbone.random_init=null", f"backbone.pretrained={tmp_path / 'model'}"]
    recipe = load_recipe("quickstart", [pooler % dim, *begun], registry=registry)
    second = build_encoder(recipe.model, texts=(), seed=1)
    assert torch.equal(second.pooler.project.weight, first.pooler.project.weight) == is_taken
