"""Every loss over processes: values, gradients of vectors and of its own parameters, as in one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from muco.core.registry import default_registry
from muco.core.turns import TurnEmbeddings
from muco.distributed.ranks import Ranks
from muco.training.step import Stepper
from tests.helpers.turns import random_turns

LOSSES = [
    ("infonce", {"symmetric": True}),
    ("multiturn_infonce", {"forms": "separate", "symmetric": True}),
    ("multiturn_infonce", {"mask": "none", "false_negative_margin": 0.05}),
    ("hardness_weighted", {"temperature": 0.1}),
    ("siglip", {}),
    ("matryoshka", {"loss": "siglip", "dims": [6, 3], "weights": [1, 2]}),
]


def scored(name: str, settings: dict, ranks: Ranks) -> dict[str, object]:
    """Score this rank's share of a batch; return the loss, its counts, and gradients by name."""
    cls = default_registry().component("loss", name)
    loss = cls(cls.Config.model_validate(settings)).double()
    query, target = random_turns([3, 1, 2, 1, 4], 0, num_forms=2, num_contents=8, num_negatives=3)
    shares = [share(side, ranks) for side in (query, target)]
    stepper: Stepper = Stepper(torch.nn.Module(), loss, torch.device("cpu"), ranks)  # type: ignore[arg-type]
    done = stepper._score(*shares)
    ranks.gradient_sum(loss.parameters()).finish()
    return {
        "mean": done.mean,
        "counts": {**done.counts, **done.rates},
        "vectors": [side.vectors.grad for side in shares],
        "parameters": {name: weight.grad for name, weight in loss.named_parameters()},
    }


def share(side: TurnEmbeddings, ranks: Ranks) -> TurnEmbeddings:
    """Return the turns of this rank's samples; the last of three ranks has none."""
    mine = side.select(side.sample_ids % max(ranks.world_size - 1, 1) == ranks.rank)
    return replace(mine, vectors=mine.vectors.detach().requires_grad_())


def _rank_main(rank: int, number: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=number
    )
    found = [scored(name, settings, Ranks(rank, number)) for name, settings in LOSSES]
    torch.save(found, f"{folder}/found-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.process
def test_three_ranks_one_of_them_empty_equal_one_process(tmp_path):
    torch.multiprocessing.spawn(_rank_main, args=(3, str(tmp_path)), nprocs=3)
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(3)]
    query, target = random_turns([3, 1, 2, 1, 4], 0, num_forms=2, num_contents=8, num_negatives=3)
    for index, (name, settings) in enumerate(LOSSES):
        separate = scored(name, settings, Ranks())
        for rank in range(3):
            result = found[rank][index]
            assert result["mean"] == pytest.approx(separate["mean"], abs=1e-10)
            assert result["counts"] == pytest.approx(separate["counts"])
            assert result["parameters"].keys() == separate["parameters"].keys()
            for weight, gradient in separate["parameters"].items():
                torch.testing.assert_close(result["parameters"][weight], gradient, rtol=0, atol=1e-10)
            for side, gradient, whole in zip(
                (query, target), result["vectors"], separate["vectors"], strict=True
            ):
                mine = side.sample_ids % 2 == rank
                if mine.any():
                    torch.testing.assert_close(gradient, whole[mine], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["infonce", "hardness_weighted"])
def test_symmetric_is_the_mean_of_both_directions(name):
    found = scored(name, {"symmetric": True}, Ranks())
    cls = default_registry().component("loss", name)
    loss = cls(cls.Config())
    query, target = random_turns([3, 1, 2, 1, 4], 0, num_forms=2, num_contents=8, num_negatives=3)
    there = loss(query, target).per_turn.mean()
    back = loss(target.select(~target.is_negative), query).per_turn.mean()
    assert found["mean"] == pytest.approx((there + back).item() / 2)
