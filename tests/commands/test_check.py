"""`muco run --check`: what it finds without building a model."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from muco.commands import doctor
from muco.commands.check import check
from muco.commands.packages import optional_packages, package_problems
from muco.config.load import load_recipe
from muco.core import CONTRACT, PluginError, RecipeError, hookimpl
from muco.core.registry import Registry
from muco.io.checkpoint_name import is_missing_path


@pytest.fixture
def notes(tmp_path, monkeypatch, shards):
    """Check the quickstart on 48 samples, with overrides; return the notes."""
    monkeypatch.chdir(tmp_path)
    data = f"data={{scenes: {{shards: {shards}}}}}"

    def notes(*overrides: str) -> list[str]:
        return check(load_recipe("quickstart", [data, *overrides]), "quickstart")

    return notes


@pytest.fixture
def problems(notes):
    """Return the problems that a check finds, by key."""

    def problems(*overrides: str) -> dict[str, str]:
        with pytest.raises(RecipeError) as caught:
            notes(*overrides)
        return {problem.path: problem.message for problem in caught.value.problems}

    return problems


def test_a_recipe_that_can_run_has_neither_problems_nor_notes(notes):
    assert notes() == []


def test_all_that_is_missing_is_listed_at_once(problems):
    missing = problems(
        "data={a: {shards: nowhere, how_to_get: ask me}, b: {source: {name: pairs, path: no.jsonl, "
        "columns: {query_text: q, target_text: t}}}}",
        "evaluate.suites=[{name: mbeir, data: none}]",
        "backbone={name: qwen_vl, pretrained: ./models/nope}",
    )
    assert set(missing) == {"data.a", "data.b", "evaluate.suites.0", "backbone.pretrained"}
    assert missing["data.a"] == "nowhere is not there.\nask me"
    assert "no.jsonl" in missing["data.b"]
    assert missing["backbone.pretrained"].startswith("./models/nope: no such file or folder")


def test_a_checkpoint_inside_other_settings_is_looked_for(problems):
    tower = "image_tower: {name: vit_base_patch16_224, pretrained: /nope}"
    assert list(problems(f"backbone={{name: clip, pretrained: hf-hub:a/b, {tower}}}")) == [
        "backbone.image_tower.pretrained"
    ]


def test_shards_that_are_broken_are_reported(problems, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "index.json" in problems("data.scenes.shards=empty")["data.scenes"]


def test_a_url_that_no_installed_package_opens_is_reported(problems):
    assert "nope" in problems("data.scenes.shards=nope://bucket/folder")["data.scenes"]


def test_a_graph_that_is_missing_is_reported(problems):
    sampler = "sampler={name: mined, graphs: {scenes: graph.safetensors}, community_size: 8}"
    assert "graph.safetensors" in problems(sampler)[""]


def test_a_last_batch_of_one_sample_is_reported(problems):
    batch = ("sampler=mixture", "train.global_batch_size=47")
    assert "48 samples in batches of 47 leave one for the last batch" in problems(*batch)[""]


def test_a_warm_up_above_the_steps_and_a_batch_above_the_data_are_notes(notes):
    warm_up, batch = notes("train.num_steps=10", "train.global_batch_size=64")
    assert warm_up.startswith("train.warmup_steps 20 is above num_steps 10")
    assert batch.startswith("train.global_batch_size 64 is above the 48 samples of the data")
    assert notes("train.num_steps=20", "train.global_batch_size=32") == []


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", False),
        ("bert-base-uncased", False),
        ("hf-hub:laion/CLIP-ViT-L-14", False),
        ("here", False),
        ("./here", False),
        ("./nope", True),
        ("../nope", True),
        ("/nope", True),
        ("~/nope/model", True),
        ("runs/nope/model", True),
        ("models/nope", True),
        ("here/nope", True),
    ],
)
def test_a_path_is_distinguished_from_a_name_on_a_hub(tmp_path, monkeypatch, name, missing):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert is_missing_path(name) == missing


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package's metadata, with these requirements."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(name: str, version: str, *needs: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        extras = ["Provides-Extra: fast", "Provides-Extra: dev"]
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, *extras]) + "\n")
        importlib.invalidate_caches()

    return installed


def test_packages_that_are_missing_or_of_another_version_are_named(installed):
    installed("muco-shapes", "1.0", "muco-a", "muco-b<2", "muco-c; extra == 'fast'", "muco-d; extra == 'dev'")
    installed("muco-b", "2.1")
    assert package_problems("muco-shapes") == {
        "muco-a": "not installed; pip install 'muco-a'",
        "muco-b": "version 2.1 is installed; pip install 'muco-b<2'",
    }
    assert optional_packages("muco-shapes") == {"muco-c": "not installed; pip install 'muco-c'"}
    installed("muco-a", "0.1")
    installed("muco-c", "3.0")
    assert package_problems("muco-shapes") == {"muco-b": "version 2.1 is installed; pip install 'muco-b<2'"}
    assert optional_packages("muco-shapes") == {"muco-c": "3.0"}


class Plugin:
    __name__ = "muco_shapes.hooks"
    muco_contract = CONTRACT

    @hookimpl
    def muco_losses(self):
        return {"shapes": "muco_shapes:Loss"}

    @hookimpl
    def muco_poolers(self):
        return {"shapes": "muco_shapes:Pooler"}


def test_doctor_lists_plugins_and_what_they_lack(installed, monkeypatch):
    installed("muco-shapes", "1.0", "muco-a")
    registry = Registry()
    registry.add(Plugin(), provider="muco-shapes 1.0")
    monkeypatch.setattr(doctor, "default_registry", lambda: registry)
    lines = doctor.findings()
    assert lines["plugin muco-shapes 1.0"] == "pooler shapes, loss shapes"
    assert lines["muco-a (of muco-shapes 1.0)"] == "not installed; pip install 'muco-a'"


def test_doctor_says_which_plugin_is_broken(monkeypatch):
    def broken() -> Registry:
        raise PluginError("plugin muco_shapes.hooks cannot be imported")

    monkeypatch.setattr(doctor, "default_registry", broken)
    assert doctor.findings()["plugins"] == "plugin muco_shapes.hooks cannot be imported"
