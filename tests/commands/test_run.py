"""Whole runs as a user starts them: `muco-run` in a process of its own."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from muco.io import atomic
from tests.helpers import processes
from tests.helpers.processes import TORCHRUN, Forked, wait_until
from tests.helpers.small import QUICK

OVERRIDES = [part for setting in QUICK for part in ("--set", setting)]


def start(
    folder: Path, *arguments: str, recipe: str = "recipes/quickstart.yaml", **options: Any
) -> Forked | subprocess.Popen:
    return processes.start(folder, "run", recipe, *OVERRIDES, *arguments, **options)


def finish(folder: Path, *arguments: str, code: int = 0, **options: Any) -> str:
    """Run to the end, check the exit code, return all that was printed."""
    return processes.ended(start(folder, *arguments, **options), code=code)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs/quickstart/model/model.safetensors")


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs/quickstart/train.jsonl").read_text().splitlines()]


def wait_for_step(process: Forked | subprocess.Popen, run: Path, step: int, checkpoint: int = 0) -> None:
    """Return once the run has logged `step` and written a checkpoint."""

    def reached() -> bool:
        log = run / "train.jsonl"
        done = len(log.read_text().splitlines()) if log.exists() else 0
        return done >= step and (not checkpoint or (run / f"checkpoints/step-{checkpoint:06d}").exists())

    wait_until(reached, process, f"step {step}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    return folder


@pytest.mark.process
def test_a_run_leaves_what_the_design_says(whole):
    run = whole / "runs/quickstart"
    left = {path.name for path in run.iterdir()}
    assert left >= {"recipe.yaml", "environment.json", "train.jsonl", "tensorboard", "checkpoints", "model",
                    "eval", "summary.json", "report.html"}  # fmt: skip
    assert not list(run.rglob("*.partial"))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 12
    assert summary["samples_seen"] == 12 * 8 - (8 - 84 % 8)
    assert summary["pairs_seen"] > summary["samples_seen"]
    result = json.loads((run / "eval/scenes.json").read_text())
    tasks = result["tasks"]
    assert summary["metrics"]["scenes/mean"] == pytest.approx(
        sum(task["score"] for task in tasks.values()) / len(tasks)
    )
    turns = [task["score"] for task in tasks.values() if "turns" in task["groups"]]
    assert len(turns) == 7
    assert summary["metrics"]["scenes/turns"] == pytest.approx(sum(turns) / 7)
    assert {task["meta_task"] for task in tasks.values()} == {
        "classification",
        "vqa",
        "retrieval",
        "grounding",
    }
    assert all(task["chance"] <= 0.1 for task in tasks.values())
    assert [line["step"] for line in log(whole)] == list(range(1, 13))
    assert all(line["model_flops"] > 0 and line["flops_per_second"] > 0 for line in log(whole))


@pytest.mark.process
def test_the_resolved_recipe_runs_again_as_it_is(whole, tmp_path):
    recipe = yaml.safe_load((whole / "runs/quickstart/recipe.yaml").read_text())
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    command = [sys.executable, "-c", "from muco.commands.main import run_main; run_main()", "again.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    same(weights(tmp_path), weights(whole))
    old, new = (
        json.loads((folder / "runs/quickstart/summary.json").read_text()) for folder in (whole, tmp_path)
    )
    assert old["metrics"] == new["metrics"]


@pytest.mark.process
def test_a_finished_run_prints_its_result_and_is_not_run_again(whole):
    before = (whole / "runs/quickstart/train.jsonl").stat().st_mtime_ns
    report = whole / "runs/quickstart/report.html"
    report.unlink()  # as after a kill just before it is written
    ended = f"{atomic._host()}-{2**22 + 1}-{'0' * 32}.partial"  # no system has such a process id
    left = report.with_name(f".report.html.{ended}"), report.parent / f"checkpoints/.step-000004.{ended}"
    left[0].touch()
    (left[1] / "model").mkdir(parents=True)
    assert "this run is done" in finish(whole)
    assert report.is_file()
    assert not any(path.exists() for path in left)
    assert (whole / "runs/quickstart/train.jsonl").stat().st_mtime_ns == before


@pytest.mark.process
def test_a_finished_run_is_probed_without_its_images(whole, tmp_path):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    assert "by chance" in finish(tmp_path, "--probe", "blind")
    metrics = json.loads((tmp_path / "runs/quickstart/summary.json").read_text())["metrics"]
    assert 0 < metrics["probe/blind"] < 1
    assert 0 < metrics["probe/chance"] < metrics["probe/sighted"] < 1
    assert "scenes/mean" in metrics
    assert "Without its images" in (tmp_path / "runs/quickstart/report.html").read_text()
    assert "'deaf' is not" in finish(tmp_path, "--probe", "deaf", code=2)


@pytest.mark.process
def test_another_run_in_the_folder_is_not_overwritten(whole):
    output = finish(whole, "--set", "train.learning_rate=0.5", code=2)
    assert "train.learning_rate: 0.0015 -> 0.5" in output
    assert "--fresh" in output


@pytest.mark.process
def test_a_separate_evaluation_gives_the_same_figures(whole):
    path = whole / "runs/quickstart/eval/scenes.json"
    before = json.loads(path.read_text())
    finish(whole, "--only", "evaluate")
    assert json.loads(path.read_text())["tasks"] == before["tasks"]


@pytest.mark.process
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_any_moment_and_resumed_ends_with_the_same_weights(whole, tmp_path, num_workers):
    """Promise 4: bit for bit, also when the number of data workers changes."""
    workers = ("--set", f"train.num_workers={num_workers}")
    moment = random.Random(time.time_ns())
    process = start(tmp_path, *workers, start_new_session=True)
    wait_for_step(process, tmp_path / "runs/quickstart", moment.randrange(1, 12))
    time.sleep(moment.random() * 0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(tmp_path, "--resume", *workers)
    same(weights(tmp_path), weights(whole))
    result = "runs/quickstart/eval/scenes.json"
    assert (tmp_path / result).read_bytes() == (whole / result).read_bytes()
    steady = ("step", "loss", "lr", "grad_norm", "tokens", "in_batch_accuracy", "counts", "epoch")
    assert [[line[key] for key in steady] for line in log(tmp_path)] == [
        [line[key] for key in steady] for line in log(whole)
    ]


@pytest.mark.process
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_a_checkpoint(whole, tmp_path, signum):
    process = start(tmp_path)
    wait_for_step(process, tmp_path / "runs/quickstart", 5)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "--resume" in err
    assert "Traceback" not in err
    assert "unfinished run" in finish(tmp_path, code=2)
    finish(tmp_path, "--resume")
    same(weights(tmp_path), weights(whole))


@pytest.mark.process
def test_a_signal_to_the_process_group_and_a_killed_worker_leave_a_checkpoint(whole, tmp_path):
    """GNU timeout and systemd send SIGTERM to the data workers too."""
    workers = ("--set", "train.num_workers=2", "--set", "train.checkpoint_every=100")
    run = tmp_path / "runs/quickstart"
    process = start(tmp_path, *workers, start_new_session=True)
    wait_for_step(process, run, 3)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err

    process = start(tmp_path, "--resume", *workers)
    wait_for_step(process, run, 6)
    psutil.Process(process.pid).children()[0].kill()
    _, err = process.communicate(timeout=60)
    if process.returncode:  # the step after the last needs no worker
        assert "a data worker was killed" in err
        assert "the checkpoint of step" in err
        assert "Traceback" not in err
        finish(tmp_path, "--resume")
    same(weights(tmp_path), weights(whole))


@pytest.mark.process
def test_a_full_disk_while_checkpointing_leaves_the_last_good_one(whole, tmp_path):
    process = start(tmp_path)
    wait_for_step(process, tmp_path / "runs/quickstart", 5, checkpoint=4)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    folder = tmp_path / "runs/quickstart/checkpoints"
    before = sorted(path.name for path in folder.iterdir())
    output = finish(tmp_path, "--resume", code=2, max_file_bytes=20_000)
    assert "cannot be written" in output
    assert before[-1] in output
    assert sorted(path.name for path in folder.iterdir()) == before
    finish(tmp_path, "--resume")
    same(weights(tmp_path), weights(whole))


@pytest.mark.process
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path):
    output = finish(tmp_path, "--set", "train.learning_rate=1e30", "--set", "train.warmup_steps=0", code=2)
    assert "not finite" in output or "the loss is nan" in output
    assert re.search(r"(turns|pairs)/shard-000000\.tar:", output)
    assert "The last checkpoint" not in output  # there is none yet


@pytest.mark.process
def test_a_batch_of_one_at_the_end_of_an_epoch_is_reported_beforehand(tmp_path):
    output = finish(tmp_path, "--set", "data.turns.source.num_samples=67", code=2)
    assert "leave one for" in output


ADAMW = ("--set", "train.optimizer=adamw")
"""Settings for shards, instead of the quickstart's Muon."""


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("one")
    finish(folder)
    return weights(folder)


@pytest.fixture(scope="module")
def one_process_of_adamw(tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("adamw")
    finish(folder, *ADAMW)
    return weights(folder)


def near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.process
@pytest.mark.parametrize("grad_cache", ["false", "true"])
def test_a_quarter_of_the_chunk_budget_gives_the_same_weights(one_process, tmp_path, grad_cache):
    finish(tmp_path, "--set", "train.chunk_tokens=256", "--set", f"train.grad_cache={grad_cache}")
    near(weights(tmp_path), one_process)


@pytest.mark.process
def test_two_processes_give_the_weights_of_one(one_process, tmp_path):
    output = finish(tmp_path, launcher=TORCHRUN)
    near(weights(tmp_path), one_process)
    assert output.count("scenes/mean") == 1, "only the main process prints"
    assert [line["step"] for line in log(tmp_path)] == list(range(1, 13))


@pytest.mark.process
def test_two_processes_go_on_where_one_stopped(one_process, tmp_path):
    process = start(tmp_path)
    wait_for_step(process, tmp_path / "runs/quickstart", 5, checkpoint=4)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    finish(tmp_path, "--resume", launcher=TORCHRUN)
    near(weights(tmp_path), one_process)


def start_two(folder: Path, *arguments: str, **options: Any) -> list[Forked]:
    return processes.start_two(folder, "run", "recipes/quickstart.yaml", *OVERRIDES, *arguments, **options)


def sharded(version: str = "2") -> dict[str, str]:
    """Return an environment with what `accelerate launch --use_fsdp --fsdp_version 2` sets."""
    settings = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": version,
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }
    return {**os.environ, **settings}


@pytest.mark.process
def test_shards_and_whole_weights_go_on_from_each_others_checkpoints(one_process_of_adamw, tmp_path):
    by_layer = ("--set", "train.gather_weights=layer")
    chunks = (*ADAMW, "--set", "train.grad_cache=true", "--set", "train.chunk_tokens=256")

    def until(step: int, checkpoint: int, *arguments: str, **options) -> None:
        process = start(tmp_path, *chunks, *arguments, start_new_session=True, **options)
        wait_for_step(process, tmp_path / "runs/quickstart", step, checkpoint=checkpoint)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    until(5, 4, *by_layer, launcher=TORCHRUN, env=sharded())
    until(9, 8, "--resume")
    finish(tmp_path, *chunks, "--resume", launcher=TORCHRUN, env=sharded())
    near(weights(tmp_path), one_process_of_adamw)


@pytest.mark.process
def test_what_shards_cannot_do_is_reported_at_the_start(tmp_path):
    assert "train.optimizer: muon" in finish(tmp_path, "--set", "train.optimizer=muon", code=2, env=sharded())
    assert "--fsdp_version 2" in finish(tmp_path, *ADAMW, code=2, env=sharded(version="1"))
    assert not (tmp_path / "runs").exists()


def failed(process: Forked) -> str:
    """Return the output of a process that must end with an error within a minute."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, out + err
    assert "Traceback" not in err, err
    return err


@pytest.mark.process
def test_one_of_two_is_killed_the_other_reports_it_and_both_resume(one_process, tmp_path):
    """Either of them: with the first one goes the store that the two met in."""
    victim = random.Random(time.time_ns()).randrange(2)
    both = start_two(tmp_path)
    wait_for_step(both[0], tmp_path / "runs/quickstart", 5, checkpoint=4)
    both[victim].kill()
    output = failed(both[1 - victim])
    assert f"process {1 - victim} of 2: another process ended" in output
    assert "--resume" in output
    both[victim].communicate()
    for each in start_two(tmp_path, "--resume"):
        assert each.communicate(timeout=120)
        assert each.returncode == 0
    near(weights(tmp_path), one_process)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
