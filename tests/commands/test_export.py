"""`muco export`: from a run to a folder for other tools, and what cannot be exported."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModel
from typer.testing import CliRunner

import muco
from muco.commands.export import export
from muco.commands.main import app
from muco.commands.run import run
from muco.config.load import load_recipe
from muco.core import MucoError
from muco.model.source import find_model
from muco.testing import dialogue_of
from tests.helpers.model_folders import save_model
from tests.helpers.small import QUICK, SMALL, SMALL_CLIP, picture

DIALOGUES = [dialogue_of(["what is it?", "a"], [picture("red", (56, 56))], "isolated")]
MODELS = {
    "adapters": {"name": "qwen_vl", **SMALL, "adapter": {"rank": 4}},
    "whole": {"name": "qwen_vl", **SMALL},
    "clip": {"name": "clip", **SMALL_CLIP, "adapter": {"rank": 4}},
}


def saved(name: str, folder: Path) -> Path:
    pooler = {"name": "turn_token", "projection_dim": 8}
    return save_model(folder, backbone=MODELS[name], pooler=pooler)


def embedded(folder: Path) -> torch.Tensor:
    source = find_model(str(folder))
    loaded = source.load(source.evaluation("a test").model)
    encoder = loaded.encoder
    assert loaded.step == 7
    with torch.no_grad():
        return encoder.eval()(encoder.backbone.processor.prepare(DIALOGUES)).vectors


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_has_the_same_embeddings_and_no_adapters(name, tmp_path):
    folder = saved(name, tmp_path / "model")
    whole = export(str(folder), tmp_path / "exported", layout="muco")
    assert not (whole / "adapter.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "model"]
    torch.testing.assert_close(embedded(whole), embedded(folder), rtol=0, atol=1e-5)


def test_transformers_misses_no_weight(tmp_path):
    whole = export(str(saved("adapters", tmp_path / "model")), tmp_path / "exported", check=False)
    _, report = AutoModel.from_pretrained(whole, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A quickstart of two steps."""
    home = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run(load_recipe("quickstart", [*QUICK, "train.num_steps=2"]))
    return home / "runs/quickstart"


def test_a_run_becomes_a_checked_folder_with_a_model_card(run_folder, tmp_path):
    to = tmp_path / "exported"
    result = CliRunner().invoke(app, ["export", str(run_folder), str(to), "--license", "apache-2.0"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines()]
    cosines = [float(row[-1]) for row in rows if row[:1] in (["transformers"], ["sentence-transformers"])]
    assert len(cosines) == 6
    assert min(cosines) >= 0.9999

    _, front, body = (to / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    scores = json.loads((run_folder / "eval/scenes.json").read_text())["tasks"]
    for task, result in scores.items():
        row = next(line for line in body.splitlines() if line.startswith(f"| scenes | {task} |"))
        assert [each.strip() for each in row.split("|")[4:6]] == [
            f"{result['score']:.3f}",
            str(result["num_queries"]),
        ]
    for expected in ("`turns`: source `scenes`", "Recipe: `quickstart`", "multiturn_infonce", "2 steps"):
        assert expected in body
    assert str(run_folder.parent) not in body


def test_the_code_of_the_model_card_runs_and_gives_the_vectors_of_muco(run_folder, tmp_path, monkeypatch):
    to = export(str(run_folder), tmp_path / "exported", check=False)
    (tmp_path / "a.png").write_bytes(picture("red", (64, 64)).data)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (to / "README.md").read_text(), flags=re.S)
    assert len(blocks) == 3
    image, text = tmp_path / "a.png", "Where is it?"
    expected = torch.from_numpy(muco.load(to).encode(["a red circle", image, {"image": image, "text": text}]))
    for block, rows in zip(blocks, ([0], [0, 1, 2], [2]), strict=True):
        if "sentence_transformers" in block and find_spec("sentence_transformers") is None:
            continue
        values: dict[str, Any] = {}
        exec(block.replace("FOLDER", str(to)), values)
        vectors = torch.as_tensor(values["vectors"])
        assert ((vectors * expected[rows]).sum(1) >= 0.9999).all(), block


def test_an_edited_model_card_does_not_damage_the_folder(run_folder, tmp_path):
    to = export(str(run_folder), tmp_path / "exported", check=False)
    before = find_model(str(to))
    weights = before.load(before.evaluation("a test").model).weights
    (to / "README.md").write_text("mine")
    assert before.load(before.evaluation("a test").model).weights == weights


def test_what_cannot_be_exported_is_reported(tmp_path):
    with pytest.raises(MucoError, match="nothing to export; name a run"):
        export("qwen_vl", tmp_path / "to")
    with pytest.raises(MucoError, match="no such folder, and no backbone"):
        export(str(tmp_path / "nowhere"), tmp_path / "to")
    folder = saved("whole", tmp_path / "model")
    with pytest.raises(MucoError, match="model is there already"):
        export(str(folder), folder)
    (tmp_path / "file").touch()
    with pytest.raises(MucoError, match="cannot be written"):
        export(str(folder), tmp_path / "file" / "to")
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut/model.safetensors").write_bytes(b"")
    with pytest.raises(MucoError, match=r"model\.safetensors: missing, or of another size"):
        export(str(tmp_path / "cut"), tmp_path / "to")
    result = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "to"), "--layout", "onnx"])
    assert "Invalid value for '--layout'" in result.output
    assert not (tmp_path / "to").exists()
