"""The trainer, from an assembled job: what a loss returns is what is logged."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from muco.config.load import load_recipe
from muco.console import Terminal
from muco.core.loss import Loss, LossTerms
from muco.distributed.ranks import Ranks
from muco.job import assemble
from muco.training.checkpoint import Origin
from tests.helpers.small import QUICK


class Counting(Loss):
    """The cosine of each query and its target, with a count and a rate of its own."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def per_turn(self, query, target) -> LossTerms:
        terms = self.loss.per_turn(query, target)
        every_second = torch.tensor(len(query) / 2)
        return LossTerms(terms.per_turn, {"tens": torch.tensor(10.0)}, {"even_turns": every_second})


def test_a_loss_names_its_own_counts_and_rates_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "cache"))
    settings = ["train.num_steps=4", "train.log_every=2"]
    recipe = load_recipe("quickstart", [*QUICK, *settings])
    console, ranks = Terminal(quiet=True), Ranks()
    origin = Origin(recipe.dump(), {})
    job = assemble(recipe, tmp_path, origin, train=True, evaluate=False, console=console, ranks=ranks)
    assert job.trainer is not None
    model = replace(job.trainer.model, loss=Counting(job.trainer.model.loss))
    replace(job.trainer, model=model).train()
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["counts"] == {"tens": 10.0}
        assert line["even_turns"] == 0.5
        assert line.get("in_batch_accuracy") is None
    assert job.progress.step == 4
