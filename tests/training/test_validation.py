"""Validation while training: it changes no weight, keeps the best, stops early, and resumes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from muco.commands.run import run
from muco.config.load import load_recipe
from muco.console import Terminal
from muco.core import Content
from muco.core.errors import MucoError
from muco.core.suite import Task
from muco.distributed.shutdown import Interrupted
from muco.training.validation import unchanged, with_fewer_queries
from tests.helpers import processes
from tests.helpers.small import QUICK

SETTINGS = [
    *QUICK,
    "train.num_steps=6",
    "train.checkpoint_every=4",
    "evaluate.suites.0.tasks=[classification, retrieval]",
    "evaluate.suites.0.num_queries=4",
]
EVERY_2 = ["train.validate_every=2", "train.keep_best=scenes/mean"]
UNCHANGED = ["train.optimizer=adamw", "train.learning_rate=1.0e-15"]
"""Every validation has the score of the first."""
NEVER_BETTER = "train.early_stopping={metric: scenes/mean, patience: 1, min_delta: 1.0}"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUCO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def trained(folder: Path, *settings: str, console: Terminal | None = None, **options) -> dict:
    """Run the recipe in the folder and return its summary."""
    recipe = load_recipe("quickstart", [*SETTINGS, *settings])
    summary = run(recipe, folder=folder, console=console or Terminal(quiet=True), **options)
    assert summary is not None
    return summary


def validations(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def validated(tmp_path_factory) -> Path:
    """A run with validations after steps 2, 4 and 6, and all its checkpoints."""
    folder = tmp_path_factory.mktemp("validated")
    settings = ["train.keep_checkpoints=9", "train.checkpoint_every=1"]
    trained(folder, "train.validate_every=2", "train.keep_best=scenes/turns", *settings)
    return folder


def test_validation_changes_no_weight_and_no_loss(validated, tmp_path):
    trained(tmp_path, only="train")
    last = "checkpoints/step-000006/model"
    assert_same(weights(validated / last), weights(tmp_path / last))
    losses = [
        [json.loads(line)["loss"] for line in (folder / "train.jsonl").read_text().splitlines()]
        for folder in (validated, tmp_path)
    ]
    assert losses[0] == losses[1]
    assert not (validated / ".validation").exists()


def test_the_best_checkpoint_has_the_runs_model(validated):
    lines = validations(validated)
    assert [line["step"] for line in lines] == [2, 4, 6]
    scores = [line["averages"]["scenes/turns"] for line in lines]
    best = lines[scores.index(max(scores))]
    summary = json.loads((validated / "summary.json").read_text())
    assert summary["model_step"] == best["step"]
    assert_same(
        weights(validated / "model"), weights(validated / f"checkpoints/step-{best['step']:06d}/model")
    )
    # The evaluation after training gives the scores of the validation: same weights, same queries.
    assert summary["metrics"] == best["averages"] | best["tasks"]


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_a_killed_run_resumes_to_the_same_best_checkpoint(validated, tmp_path, step):
    folder = tmp_path / "run"
    shutil.copytree(validated, folder)
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    for name in ("model", "eval"):
        shutil.rmtree(folder / name)
    for path in (folder / "checkpoints").iterdir():
        if int(path.name[5:]) > step:
            shutil.rmtree(path)  # the logs go on: they are cut back
    recipe = load_recipe(str(folder / "recipe.yaml"))
    run(recipe, folder=folder, resume=True, only="train", console=Terminal(quiet=True))
    assert validations(folder) == validations(validated)
    assert_same(weights(folder / "model"), weights(validated / "model"))


def test_the_first_of_equal_scores_is_kept_and_early_stopping_ends_the_run(tmp_path):
    settings = [*EVERY_2, *UNCHANGED, "train.checkpoint_every=1", "train.keep_checkpoints=1"]
    summary = trained(tmp_path, *settings, NEVER_BETTER)
    assert (summary["steps"], summary["model_step"], summary["stopped_early"]) == (4, 2, True)
    assert [line["step"] for line in validations(tmp_path)] == [2, 4]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    assert json.loads((tmp_path / "eval/scenes.json").read_text())["depends_on"]["step"] == 2
    # The run is done; without early stopping it goes on.
    assert trained(tmp_path, *settings, NEVER_BETTER) == summary
    summary = trained(tmp_path, *settings, resume=True)
    assert (summary["steps"], summary["model_step"], summary["stopped_early"]) == (6, 2, False)


class Stopping(Terminal):
    """Send a stop signal to this process when the log prints a step."""

    def __init__(self, text: str) -> None:
        super().__init__(quiet=True)
        self.text = text

    def print(self, *objects: object, **options: object) -> None:
        if str(objects[0]).startswith(self.text):
            signal.raise_signal(signal.SIGTERM)


def test_a_stop_signal_does_not_wait_for_a_validation_that_resuming_makes_up_for(validated, tmp_path):
    settings = ["train.validate_every=2", "train.keep_best=scenes/turns"]
    with pytest.raises(Interrupted):
        trained(tmp_path, *settings, console=Stopping("step 4/6"))
    assert [line["step"] for line in validations(tmp_path)] == [2]
    trained(tmp_path, *settings, resume=True, only="train")
    assert validations(tmp_path) == validations(validated)
    assert_same(weights(tmp_path / "model"), weights(validated / "model"))


def test_a_checkpoint_that_is_gone_is_told(tmp_path):
    settings = [*EVERY_2, *UNCHANGED]
    trained(tmp_path, *settings, only="train")
    shutil.rmtree(tmp_path / "checkpoints/step-000002")
    with pytest.raises(MucoError, match=r"step 2, the best by train\.keep_best, is not there any more"):
        trained(tmp_path, *settings, resume=True, only="train")


def test_a_metric_that_no_suite_gives_is_told_before_training(tmp_path):
    with pytest.raises(MucoError, match=r"train\.keep_best: .*'scenes/turn'\. Did you mean 'scenes/turns'\?"):
        trained(tmp_path, "train.validate_every=2", "train.keep_best=scenes/turn")
    assert not (tmp_path / "train.jsonl").exists()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("one")
    trained(folder, *EVERY_2, *UNCHANGED, NEVER_BETTER, only="train")
    return validations(folder)


@pytest.mark.process
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_validate_as_one(one_process, tmp_path, sharded):
    settings = [*EVERY_2, *UNCHANGED, NEVER_BETTER]
    arguments = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    env = {**os.environ, **({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharded else {})}
    both = processes.start_two(
        tmp_path, "run", "quickstart", "--only", "train", "--to", "two", *arguments, env=env
    )
    for process in both:
        processes.ended(process)
    assert validations(tmp_path / "two") == one_process
    assert [line["step"] for line in one_process] == [2, 4]


def text(number: int) -> Content:
    return Content(f"text {number}")


def test_fewer_queries_keep_their_candidates():
    task = Task(
        name="t",
        meta_task="m",
        queries=[text(number) for number in range(6)],
        pool=[text(10 + number) for number in range(6)],
        candidates=[[row, (row + 1) % 6] for row in range(6)],
        relevant=[[row] for row in range(6)],
    )
    fewer = with_fewer_queries(task, 2)
    assert [fewer.queries[row].text for row in range(2)] == ["text 0", "text 3"]
    assert fewer.candidates is not None
    texts = [[fewer.pool[index].text for index in own] for own in fewer.candidates]
    assert texts == [["text 10", "text 11"], ["text 13", "text 14"]]
    assert [fewer.pool[own[0]].text for own in fewer.relevant] == ["text 10", "text 13"]
    assert len(fewer.pool) == 4
    assert with_fewer_queries(task, 6) is task


def test_random_states_and_module_modes_are_restored():
    module = nn.Sequential(nn.Dropout(), nn.Linear(2, 2).eval())
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    with unchanged(module):
        module.eval()
        random.random()
        torch.rand(1)
        np.random.rand()
    assert [part.training for part in module] == [True, False]
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all()
