from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from muco.config.load import load_recipe
from muco.core import MucoError, RecipeError
from muco.plugins.losses.infonce import InfoNCE
from muco.plugins.losses.matryoshka import Matryoshka
from muco.plugins.losses.siglip import SigLIP
from muco.testing import check_loss
from tests.helpers.turns import random_turns


def matryoshka(loss, **settings) -> Matryoshka:
    return Matryoshka(Matryoshka.Config.model_validate({"loss": loss, **settings}))


def test_keeps_the_contract(registry):
    check_loss(registry, "matryoshka", {"loss": "multiturn_infonce", "dims": [8, 4]})
    check_loss(
        registry, "matryoshka", {"loss": {"name": "siglip", "bias": -2}, "dims": [2, 8], "weights": [1, 3]}
    )


@pytest.mark.parametrize("weights", [None, (0.5, 2.0)])
def test_is_the_weighted_sum_over_cut_embeddings(weights):
    query, target = random_turns([1] * 5, 0)
    inner = InfoNCE(InfoNCE.Config(temperature=0.1))
    expected = 0
    for dim, weight in zip((3, 6), weights or (1, 1), strict=True):
        cut = [replace(side, vectors=F.normalize(side.vectors[:, :dim], dim=1)) for side in (query, target)]
        expected = expected + weight * inner(*cut).per_turn
    loss = matryoshka({"name": "infonce", "temperature": 0.1}, dims=(3, 6), weights=weights)
    torch.testing.assert_close(loss(query, target).per_turn, expected)


def test_counts_are_those_of_the_largest_size_and_hits_stand_beside_them():
    query, target = random_turns([2, 1, 3], 0)
    terms = matryoshka("multiturn_infonce", dims=(2, 6, 4))(query, target)
    whole = matryoshka("multiturn_infonce", dims=(6,))(query, target)
    assert {"hits_2", "hits_4"} == terms.counts.keys() - whole.counts.keys()
    assert all(int(terms.counts[name]) == int(whole.counts[name]) for name in whole.counts)
    assert terms.rates == whole.rates


def test_the_wrapped_loss_is_built_once_and_its_parameters_are_trained():
    loss = matryoshka("siglip", dims=(2, 6))
    assert isinstance(loss.loss, SigLIP)
    assert {name for name, _ in loss.named_parameters()} == {"loss.log_scale", "loss.bias"}
    assert not loss.symmetric
    assert matryoshka("hardness_weighted", dims=(6,)).symmetric


def test_a_size_beyond_the_embedding_is_an_error():
    query, target = random_turns([1, 1], 0)
    with pytest.raises(MucoError, match=r"loss\.dims: 7 exceeds the 6 dimensions"):
        matryoshka("infonce", dims=(4, 7))(query, target)


def test_the_wrapped_loss_is_checked_with_the_recipe():
    """What it needs, what it is called, what it can be set to."""
    wrapped = "loss={name: matryoshka, dims: [64], loss: {name: infonce, duplicates: merge}}"
    recipe = load_recipe("quickstart", [wrapped])
    assert recipe.dump()["loss"]["loss"]["name"] == "infonce"
    dialogue = "packer={name: multi_turn, context: causal}"
    with pytest.raises(RecipeError, match="`matryoshka` as set here needs independent_targets"):
        load_recipe("quickstart", [wrapped, dialogue])
    with pytest.raises(
        RecipeError, match=r"loss\.loss\.name: no loss named 'infonc'. Did you mean 'infonce'"
    ):
        load_recipe("quickstart", ["loss={name: matryoshka, dims: [64], loss: infonc}"])
    with pytest.raises(
        RecipeError, match=r"loss\.loss\.temperatur: `.*` has no such key. Did you mean 'temperature'"
    ):
        load_recipe(
            "quickstart", ["loss={name: matryoshka, dims: [64], loss: {name: infonce, temperatur: 1}}"]
        )
    with pytest.raises(RecipeError, match="3 `weights` for 1 `dims`"):
        load_recipe("quickstart", ["loss={name: matryoshka, dims: [64], weights: [1, 1, 1], loss: infonce}"])
    with pytest.raises(RecipeError, match="names a size twice"):
        load_recipe("quickstart", ["loss={name: matryoshka, dims: [64, 64], loss: infonce}"])
