"""Cached gradients against a plain step, and peak memory as the batch grows.

pytest benchmarks/test_cached_gradients.py -s
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.peak import added_mib
from muco.core import TurnEncoder
from muco.core.recipe_file import load_recipe
from muco.training.batches import StepBatches
from muco.training.build import build_model, build_packer, build_sampler, open_data
from muco.training.step import Stepper

CPU = torch.device("cpu")


def stepper_of(batch: int, *, cached: bool, chunk_tokens: int | None, settings: tuple[str, ...] = ()):
    """Return a step over `batch` scenes of seven turns, as a function."""
    recipe = load_recipe(
        "quickstart",
        ["data.turns.source.num_samples=2048", "data.pairs.source.num_samples=32",
         f"train.samples_per_step={batch}", f"sampler.run_length={batch}",
         "data.pairs.source.turn_share=1", *settings],
    )  # fmt: skip
    readers = open_data(recipe, lambda samples, _: samples)
    model = build_model(recipe, readers)
    encoder: TurnEncoder = model.encoder.train()
    batches = StepBatches(
        readers=readers,
        sampler=build_sampler(recipe, readers),
        packer=build_packer(recipe),
        processor=encoder.backbone.processor,
        samples_per_step=batch,
        seed=0,
        chunk_tokens=chunk_tokens,
    )
    inputs, stepper = batches[0], Stepper(encoder, model.loss, CPU, cached=cached)

    def step() -> None:
        encoder.zero_grad()
        stepper(inputs)

    return step


SLOW_TOWER = (
    "backbone.freeze_vision=true",
    "backbone.scratch.vision_layers=24",
    "backbone.scratch.vision_dim=256",
    "backbone.scratch.num_layers=1",
    "backbone.min_pixels=50176",
    "backbone.max_pixels=50176",
)


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
@pytest.mark.parametrize("tower", ["trained", "frozen"])
def test_a_step_at_a_batch_that_fits(benchmark, tower, cached):
    settings = SLOW_TOWER if tower == "frozen" else ()
    batch = 8 if tower == "frozen" else 64
    step = stepper_of(batch, cached=cached, chunk_tokens=1024, settings=settings)
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_peak_memory_as_the_batch_grows(benchmark, cached):
    setup = "from benchmarks.test_cached_gradients import stepper_of\n"
    setup += f"small = stepper_of(4, cached={cached}, chunk_tokens=1024)\nsmall()\n"
    make = f"step = stepper_of({{}}, cached={cached}, chunk_tokens=1024)\n"
    found = {batch: added_mib(setup + make.format(batch), "step()") for batch in (64, 512)}
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info |= {f"added_mib_{batch}": mib for batch, mib in found.items()}
    print(f"\n{'cached' if cached else 'plain'}: MiB added by a step of 64 and of 512 images: {found}")
