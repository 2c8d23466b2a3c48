"""`auto` in two processes whose devices differ in free memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muco.config.recipe import TrainSettings
from muco.console import Terminal
from muco.distributed.fsdp import Shards
from muco.distributed.ranks import Ranks
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.single_turn import SingleTurn
from muco.plugins.samplers.mixture import Mixture
from muco.training import sizing
from muco.training.batches import StepBatches
from muco.training.checkpoint import Progress
from muco.training.chunk_choice import ChunkChoice
from muco.training.step import Stepper
from tests.helpers.gradients import encoder, ragged
from tests.helpers.ranks import Group

AUTO = TrainSettings(
    num_steps=1, global_batch_size=7, learning_rate=1e-3, grad_cache=True, chunk_tokens="auto"
)
FREE_BYTES = (2**33, 2**21)
"""The second process has room for one small chunk."""


def choices(ranks: Ranks, folder: str) -> list[int | None]:
    """Return what all processes take if each measures, and if the main process alone does."""
    sizing.available_bytes = lambda _: FREE_BYTES[ranks.rank]
    model = encoder()
    batches = StepBatches(
        readers={"ragged": ragged(Path(folder) / f"{ranks.rank}")},
        sampler=Mixture(Mixture.Config()),
        packer=SingleTurn(SingleTurn.Config(system="", turns="all")),
        processor=model.backbone.processor,
        global_batch_size=7,
        seed=0,
        rank=ranks.rank,
        num_ranks=ranks.world_size,
    )
    chosen = []
    for shards in (Shards(by_layer=True), Shards()):
        loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config())
        stepper = Stepper(model, loss, torch.device("cpu"), ranks, shards, grad_cache=True)
        choice = ChunkChoice(stepper, batches, Progress(), 0, Terminal(quiet=True))
        chosen.append(choice.choose(AUTO, 0)[0])
    return chosen


@pytest.mark.process
def test_the_process_with_the_least_memory_decides_if_all_encode_together(tmp_path):
    (least, of_main), other = Group(tmp_path, 2, choices, str(tmp_path)).results()
    assert [least, of_main] == other
    assert least < of_main
