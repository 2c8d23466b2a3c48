"""Whose run is in a folder, and what may be done there; runs of a few steps in this process."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from muco.commands.run import run
from muco.config.load import load_recipe
from muco.core.errors import DataError, MucoError
from muco.data.shards.writer import write_shards
from muco.io.lock import locked
from muco.model.folder import weights_hash
from muco.run_folder import RunFolder, Summary
from muco.training.checkpoint import checkpoints
from tests.helpers.small import QUICK

SHORT = [*QUICK, "train.num_steps=2", "train.checkpoint_every=1", "train.log_every=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shards) -> tuple[Path, Path]:
    """A run of two steps that was only trained, and its shards."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "shards"
    shutil.copytree(shards, data)
    start(folder / "runs/quickstart", data)
    return folder / "runs/quickstart", data


@pytest.fixture
def copied(finished, tmp_path) -> tuple[Path, Path]:
    """A copy of the run, to be changed, and its shards."""
    run_folder, data = finished
    shutil.copytree(run_folder, tmp_path / "runs/quickstart")
    return tmp_path / "runs/quickstart", data


def start(run_folder: Path, data: Path, *overrides: str, **options: bool) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    settings = [*SHORT, "data.pairs.source=null", f"data.pairs.shards={data}", *overrides]
    run(load_recipe("quickstart", settings), folder=run_folder, console=console, only="train", **options)
    return console.export_text()


def test_a_checkpoint_of_another_recipe_is_refused(copied):
    run_folder, data = copied
    (run_folder / "recipe.yaml").unlink()
    with pytest.raises(MucoError, match=r"holds files, but no recipe\.yaml"):
        start(run_folder, data, "loss.temperature=0.5", resume=True)
    manifest = checkpoints(run_folder)[-1].folder / "checkpoint.json"
    saved = json.loads(manifest.read_text())
    assert saved["recipe"]["train"]["num_steps"] == 2
    # As if the folder had another run's recipe: the checkpoint knows better.
    shutil.rmtree(run_folder / "model")
    other = [*SHORT, "data.pairs.source=null", f"data.pairs.shards={data}", "loss.temperature=0.5"]
    RunFolder(run_folder).write("recipe.yaml", load_recipe("quickstart", other).dump())
    with pytest.raises(MucoError, match=r"step-000002 holds another run(.|\n)*loss.temperature"):
        start(run_folder, data, "loss.temperature=0.5", resume=True)


def test_a_run_is_not_done_without_its_model(tmp_path):
    recipe, folder = load_recipe("quickstart", SHORT), RunFolder(tmp_path)
    summary = Summary("quickstart", 2, 16, 16, 1.0, 1.0, {"scenes/mean": 0.5})
    folder.write("recipe.yaml", recipe.dump())
    folder.write_summary(summary)
    folder.model.mkdir()
    (folder.model / "muco.json").write_text("{}")
    assert folder.check(recipe, {}, resume=False, only=None) == summary
    shutil.rmtree(folder.model)
    assert folder.check(recipe, {}, resume=True, only=None) is None
    with pytest.raises(MucoError, match="unfinished run"):
        folder.check(recipe, {}, resume=False, only=None)
    changed = load_recipe("quickstart", [*SHORT, "train.log_every=7"])
    with pytest.raises(MucoError, match=r"other settings\n  train\.log_every: \d+ -> 7\nGo on with --resume"):
        folder.check(changed, {}, resume=False, only=None)


@pytest.mark.parametrize("number", [0, -1, 2**31, "four", None, True])
def test_a_number_of_threads_that_cannot_be_is_reported(tmp_path, number):
    folder = RunFolder(tmp_path)
    folder.write("environment.json", {"num_threads": number})
    if number is None:
        assert folder.num_threads() is None
        return
    with pytest.raises(MucoError, match=r"environment\.json: num_threads is"):
        folder.num_threads()


def test_copies_and_half_checkpoints_are_named_and_not_used(copied):
    run_folder, data = copied
    folder = run_folder / "checkpoints"
    shutil.copytree(folder / "step-000002", folder / "step-000002.bak")
    (folder / "step-000009").mkdir()
    assert [each.step for each in checkpoints(run_folder)] == [1, 2]
    message = start(run_folder, data, resume=True)
    assert "step-000002.bak is no complete checkpoint" in message
    assert "step-000009 is no complete checkpoint" in message
    assert "resuming after step 2" in message


def test_a_checkpoint_of_which_one_byte_changed_is_refused(copied):
    run_folder, data = copied
    weights = checkpoints(run_folder)[-1].folder / "training.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match=r"training.pt missing, or changed(.|\n)*Remove it to resume"):
        start(run_folder, data, resume=True)
    shutil.rmtree(weights.parent)
    assert "resuming after step 1" in start(run_folder, data, resume=True)


def test_changed_shards_are_noticed(copied, registry, tmp_path):
    run_folder, data = copied
    scenes = registry.component("source", "scenes")
    other = tmp_path / "other"
    write_shards(scenes(scenes.Config(num_samples=48, seed=7)).samples(), other, metadata={})
    kept = tmp_path / "kept"
    shutil.move(data, kept)
    shutil.copytree(other, data)
    try:
        with pytest.raises(MucoError, match=r"trained on other data: data.pairs changed"):
            start(run_folder, data, resume=True)
        (run_folder / "data.json").unlink()
        with pytest.raises(MucoError, match=r"step-000002 was trained on other data: data.pairs changed"):
            start(run_folder, data, resume=True)
    finally:
        shutil.rmtree(data)
        shutil.move(kept, data)


def test_a_second_command_is_refused_and_a_stale_lock_is_not_in_the_way(copied):
    run_folder, data = copied
    lock = run_folder.parent / ".quickstart.lock"
    with (
        locked(lock),
        pytest.raises(MucoError, match=f"held by host {platform.node()}, process {os.getpid()}"),
    ):
        start(run_folder, data, resume=True)
    lock.write_text("host gone, process 1\n")
    start(run_folder, data, resume=True)
    assert not lock.exists()


def test_fresh_follows_a_linked_run_folder_and_leaves_nothing_of_the_old_run(copied, tmp_path):
    run_folder, data = copied
    moved = tmp_path / "big_disk"
    shutil.move(run_folder, moved)
    run_folder.symlink_to(moved)
    (moved / "note.txt").touch()
    start(run_folder, data, "train.num_steps=1", fresh=True)
    assert run_folder.is_symlink()
    assert [each.step for each in checkpoints(moved)] == [1]
    assert not (moved / "note.txt").exists()


def test_a_resumed_run_has_the_weights_hash_of_an_uninterrupted_one(finished, copied):
    """transformers adds keys to tokenizer_config.json when it saves what it loaded."""
    run_folder, data = copied
    shutil.rmtree(run_folder / "checkpoints/step-000002")
    start(run_folder, data, resume=True)
    assert weights_hash(run_folder / "model") == weights_hash(finished[0] / "model")


def test_a_source_with_one_id_for_all_is_refused_at_the_start(tmp_path, registry):
    scenes = registry.component("source", "scenes")
    drawn = scenes(scenes.Config(num_samples=8)).samples()
    samples = [dataclasses.replace(sample, sample_id="same") for sample in drawn]
    write_shards(samples, tmp_path / "same", metadata={})
    with pytest.raises(MucoError, match=r"data\.pairs: samples 0 and 1 have the same sample_id"):
        start(tmp_path / "runs/quickstart", tmp_path / "same")
