"""The trainer, from an assembled job: what a loss returns is what is logged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat

import pytest
import torch

from muco.config.load import load_recipe
from muco.console import Terminal
from muco.core.loss import Loss, LossTerms
from muco.core.turns import EncoderInputs
from muco.distributed.ranks import Ranks
from muco.job import Job, assemble
from muco.training import sizing
from muco.training.checkpoint import Origin
from muco.training.step import Stepper
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


@pytest.fixture
def job_of(tmp_path, monkeypatch) -> Callable[..., Job]:
    """Return a function that assembles a small quickstart with settings of its own."""
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "cache"))

    def assembled(*settings: str) -> Job:
        recipe = load_recipe("quickstart", [*QUICK, *settings])
        options = {"train": True, "evaluate": False, "console": Terminal(quiet=True), "ranks": Ranks()}
        return assemble(recipe, tmp_path, Origin(recipe.dump(), {}), **options)

    return assembled


def test_auto_turns_gradient_checkpointing_on_where_the_longest_dialogue_does_not_fit(job_of, monkeypatch):
    settings = ["train.num_steps=1", "train.grad_cache=true", "train.chunk_tokens=auto"]
    free = chain([0], repeat(2**33))  # bytes: no room for the first measurement
    monkeypatch.setattr(sizing, "available_bytes", lambda _: next(free))
    job = job_of(*settings)
    job.trainer.train()
    assert job.progress.gradient_checkpointing
    assert job.progress.chunk_tokens
    assert job.trainer.model.encoder.backbone.model.is_activation_checkpointing
    resumed = job_of(*settings)
    assert resumed.progress == job.progress
    resumed.trainer.train()
    assert resumed.trainer.model.encoder.backbone.model.is_activation_checkpointing


def test_auto_turns_gradient_checkpointing_on_where_the_device_has_too_little_memory(job_of, monkeypatch):
    dry_run, failures = Stepper.dry_run, []

    def small_device(stepper: Stepper, chunk: EncoderInputs) -> int:
        if not stepper.encoder.backbone.model.is_activation_checkpointing:
            failures.append(chunk.size)
            raise torch.OutOfMemoryError
        return dry_run(stepper, chunk)

    monkeypatch.setattr(Stepper, "dry_run", small_device)
    settings = ["train.num_steps=1", "train.grad_cache=true", "train.chunk_tokens=auto"]
    job = job_of(*settings)
    job.trainer.train()
    assert job.progress.gradient_checkpointing
    assert job.progress.chunk_tokens
    assert failures
    failures.clear()
    resumed = job_of(*settings)
    resumed.trainer.train()
    assert resumed.trainer.model.encoder.backbone.model.is_activation_checkpointing
    assert not failures


def test_a_resumed_run_holds_what_auto_chose(job_of, monkeypatch):
    settings = [
        "train.num_steps=1",
        "train.grad_cache=true",
        "train.chunk_tokens=300",
        "train.held_tokens=auto",
    ]
    job = job_of(*settings)
    job.trainer.train()
    held_tokens = job.progress.held_tokens
    assert held_tokens > 300
    monkeypatch.setattr(sizing, "available_bytes", lambda _: 2**33 // 1024)
    resumed = job_of(*settings)
    resumed.trainer.train()
    assert resumed.trainer._stepper.held_tokens == held_tokens


def test_a_loss_names_its_own_counts_and_rates_in_the_log(tmp_path, job_of):
    job = job_of("train.num_steps=4", "train.log_every=2")
    model = replace(job.trainer.model, loss=Counting(job.trainer.model.loss))
    replace(job.trainer, model=model).train()
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["counts"] == {"tens": 10.0}
        assert line["even_turns"] == 0.5
        assert line.get("in_batch_accuracy") is None
    assert job.progress.step == 4


def test_a_run_prints_its_attention_kernel(job_of, capsys):
    job = job_of("train.num_steps=1", "backbone.attention=sdpa")
    replace(job.trainer, console=Terminal()).train()
    assert "attention: sdpa" in capsys.readouterr().out
