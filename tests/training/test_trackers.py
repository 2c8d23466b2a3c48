"""Trackers: the real mlflow and wandb, where they are installed, and TensorBoard's file."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from muco.console import Terminal
from muco.core.errors import MucoError
from muco.training.log import LoggedStep, LoggedValidation, TrainLog
from muco.training.trackers import missing_trackers

RECIPE = {"name": "tiny", "train": {"num_steps": 4, "betas": [0.9, 0.999]}}
VALIDATION = LoggedValidation(2, 0.5, {"mmeb/mean (5 of 36)": 0.25}, {"mmeb/ImageNet-1K": 0.25})


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    PartialState(cpu=True)  # accelerate's trackers need it; training has it
    monkeypatch.chdir(tmp_path)


def line(step: int) -> LoggedStep:
    return LoggedStep(
        step=step, epoch=0, loss=1.0 / step, lr=0.1, grad_norm=1, pairs_per_second=2, samples_per_second=1,
        tokens=5, padding_share=0, wait_share=0, counts={"negatives": 4},
    )  # fmt: skip


def logged(folder: Path, tracker: str) -> str:
    """Log two steps and a validation, then resume after step 1 and log the second step again."""
    console = Terminal(file=io.StringIO())
    for start in (0, 1):
        options = {"start": start, "num_steps": 2, "console": console, "recipe": RECIPE}
        with TrainLog(folder, trackers=[tracker], **options) as log:
            for step in range(start + 1, 3):
                log.write(line(step))
            log.write_validation(VALIDATION, None)
    return console.file.getvalue()


def test_tensorboard_has_steps_and_validations(tmp_path):
    logged(tmp_path, "tensorboard")
    events = EventAccumulator(f"{tmp_path / 'tensorboard'}").Reload()
    assert {"train/loss", "counts/negatives", "validation/mmeb/mean 5 of 36"} <= set(events.Tags()["scalars"])
    assert [(each.step, each.value) for each in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]


@pytest.mark.filterwarnings("ignore")  # of mlflow's own code
def test_mlflow_gets_figures_and_settings_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path / 'mlruns'}")
    assert "warning" not in logged(tmp_path, "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("muco")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((each.step, each.value) for each in history) == [(1, 1.0), (2, 0.5), (2, 0.5)]
    assert run.data.metrics["validation/mmeb/mean 5 of 36"] == 0.25
    assert run.data.params["train.betas"] == "[0.9, 0.999]"
    assert run.info.run_name == "tiny"


@pytest.mark.filterwarnings("ignore")  # of wandb's own code
def test_wandb_offline_gets_figures_and_a_resumed_run_has_its_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "warning" not in logged(tmp_path, "wandb")
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # named by the run's id
    written = b"".join(file.read_bytes() for file in files)
    for name in (b"train/loss", b"counts/negatives", b"validation/mmeb/mean 5 of 36", b"train.betas"):
        assert name in written


@pytest.mark.filterwarnings("ignore")  # of trackio's own code
def test_trackio_gets_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", f"{tmp_path / 'trackio'}")  # read by the first import
    pytest.importorskip("trackio")
    assert "warning" not in logged(tmp_path, "trackio")
    assert list((tmp_path / "trackio").glob("muco*"))


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_told_before_training(tmp_path, name):
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    assert missing_trackers(["tensorboard", name]) == {
        f"train.trackers.{name}": f"the package {name} is not installed: pip install 'muco[trackers]'"
    }
    with pytest.raises(MucoError, match=rf"{name} is not installed"):
        TrainLog(tmp_path, start=0, num_steps=2, console=Terminal(quiet=True), trackers=[name])
