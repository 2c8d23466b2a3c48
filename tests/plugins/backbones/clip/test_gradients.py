"""What a step puts on the weights: in any chunks, with activations computed again, with frozen towers."""

from __future__ import annotations

import pytest
import torch

from muco.core import MucoError
from muco.plugins.packers.single_turn import SingleTurn
from tests.helpers.clip import build, gradients, loss_change, same, stepper


@pytest.mark.parametrize("tower", [{}, {"image_tower": {"name": "test_resnet"}}], ids=["vit", "timm"])
@pytest.mark.parametrize("frozen", [False, True])
def test_cached_gradients_in_any_chunks_equal_those_of_the_whole_batch(reader, tower, frozen):
    settings = {**tower, "freeze_vision": frozen}
    whole = gradients(reader, **settings)
    for cached in (False, True):
        for budget in (20, 90):
            same(gradients(reader, cached=cached, budget=budget, **settings), whole, 1e-10)


def kept_bytes(step) -> int:
    """Return the size of what is kept for the way back."""
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept)


@pytest.mark.parametrize("tower", [{}, {"image_tower": {"name": "test_vit"}}], ids=["vit", "timm"])
@pytest.mark.parametrize("adapter", [None, {"vision": True, "dropout": 0.0}], ids=["whole", "adapters"])
def test_activations_computed_again_give_the_same_gradients_of_less_memory(reader, tower, adapter):
    settings = {**tower, "adapter": adapter}
    same(gradients(reader, **settings, gradient_checkpointing=True), gradients(reader, **settings), 1e-10)
    less, more = (
        kept_bytes(stepper(reader, **settings, cached=False, gradient_checkpointing=each)[1])
        for each in (True, False)
    )
    assert less < 0.95 * more


def test_a_tower_that_keeps_its_activations_is_reported():
    with pytest.raises(MucoError, match=r"gradient_checkpointing: .*freeze_vision: true"):
        build(image_tower={"name": "darknet17"}, gradient_checkpointing=True)


def test_float32_agrees_to_1e_5(reader):
    whole = gradients(reader, dtype=torch.float32)
    same(gradients(reader, cached=True, budget=40, dtype=torch.float32), whole, 1e-5)


def test_multi_turn_has_the_gradients_of_all_pairs_one_by_one(reader):
    """Isolated turns are single turns, so their batch is that of `single_turn` with `turns: all`."""
    one_by_one = SingleTurn(SingleTurn.Config(turns="all", system=""))
    same(gradients(reader, packer=one_by_one), gradients(reader), 1e-10)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_a_frozen_tower_gets_no_gradient(reader, part):
    trained = gradients(reader, **{f"freeze_{part}": True})[1]
    tower = {"vision": "model.visual", "text": "model.text"}[part]
    assert not any(tower in name for name in trained)
    assert any("fusion" in name for name in trained)
    assert any(name.startswith("backbone.model.") for name in trained)


@pytest.mark.parametrize("fusion", ["sum", "learned_sum", "mlp"])
@pytest.mark.parametrize("tower", [{}, {"image_tower": {"name": "test_convnext"}}], ids=["vit", "timm"])
def test_steps_on_one_batch_lower_its_loss(reader, tower, fusion):
    encoder, step = stepper(reader, dtype=torch.float32, **tower)
    if fusion != "mlp":
        encoder.backbone = build(fusion=fusion, **tower).train()
    assert loss_change(encoder, step) < -0.05
