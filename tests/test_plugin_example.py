"""The package in examples/, its source added to a registry; CI installs it and trains with it."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from muco.config.load import load_recipe
from muco.core import TurnSpans, TurnStates
from muco.core.registry import Registry
from muco.testing import check_loss, check_pooler
from tests.helpers.turns import random_turns

FOLDER = Path(__file__).parents[1] / "examples/muco-plugin-example"


@pytest.fixture
def plugins(monkeypatch) -> Iterator[Registry]:
    """muco's own components and the package's, by the entry point that its pyproject.toml names."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    monkeypatch.syspath_prepend(FOLDER)
    registry = Registry()
    registry.add(importlib.import_module("muco.plugins.hooks"), provider="muco 0.1.0")
    for module in project["entry-points"]["muco"].values():
        provider = f"{project['name']} {project['version']}"
        registry.add(importlib.import_module(module), provider=provider)
    yield registry
    for name in [name for name in sys.modules if name.startswith("muco_plugin_example")]:
        del sys.modules[name]


def test_its_components_keep_their_contracts(plugins):
    check_pooler(plugins, "weighted_mean", {})
    check_loss(plugins, "triplet", {"margin": 0.1})


def test_its_recipe_is_valid_and_names_its_components(plugins):
    recipe = load_recipe(str(FOLDER / "recipe.yaml"), registry=plugins)
    for ref in (recipe.pooler, recipe.loss):
        assert plugins.find(ref.kind, ref.name).provider == "muco-plugin-example 0.1.0"


def test_the_pooler_weighs_later_tokens_more(plugins):
    cls = plugins.component("pooler", "weighted_mean")
    hidden = torch.randn(5, 4)
    spans = TurnSpans(token=torch.tensor([3]), start=torch.tensor([1]), stop=torch.tensor([4]))
    pooled = cls(cls.Config(), hidden_dim=4).pool(TurnStates(hidden=hidden, spans=spans, ids=None))
    torch.testing.assert_close(pooled[0], hidden[1] + 2 * hidden[2] + 3 * hidden[3])


def test_the_loss_holds_the_hardest_negative_against_the_positive(plugins):
    cls = plugins.component("loss", "triplet")
    loss = cls(cls.Config(margin=0.3, temperature=0.5))
    query, target = random_turns([1, 2, 1], 0)
    for i, found in enumerate(loss(query, target).per_turn.tolist()):
        score = (target.vectors @ query.vectors[i]).detach()
        own = (target.sample_ids == query.sample_ids[i]) & (target.turn_ids == query.turn_ids[i])
        other = target.group_ids != query.group_ids[i]
        missing = score[other].max() - score[own].item() + 0.3
        assert found == pytest.approx(0.5 * (missing / 0.5).exp().log1p().item())
    with pytest.raises(ValueError, match="no negative"):
        loss(*random_turns([2], 0))
