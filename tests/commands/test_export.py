"""A model folder with its adapters merged: what muco, and what transformers, reads of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from muco.commands.export import export
from muco.config.load import validate_settings
from muco.config.recipe import Evaluation
from muco.core import MucoError
from muco.model.build import build_encoder
from muco.model.folder import save_encoder
from muco.model.source import find_model
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.testing import dialogue_of
from tests.helpers.small import SMALL, SMALL_CLIP, TEXTS, picture

DIALOGUES = [dialogue_of(["what is it?", "a"], [picture("red", (56, 56))], "isolated")]
MODELS = {
    "adapters": {"name": "qwen_vl", **SMALL, "adapter": {"rank": 4}},
    "whole": {"name": "qwen_vl", **SMALL},
    "clip": {"name": "clip", **SMALL_CLIP, "adapter": {"rank": 4}},
}


def saved(name: str, folder: Path) -> Path:
    """Write a model whose every trained weight was changed, as training would."""
    values = {
        "name": "x",
        "packer": {"name": "multi_turn", "context": "isolated"},
        "backbone": MODELS[name],
        "pooler": {"name": "turn_token", "projection_dim": 8},
        "evaluate": {},
    }
    asked = validate_settings(Evaluation, values, title="a test")
    encoder = build_encoder(asked.model, texts=TEXTS, seed=0)
    for weight in encoder.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    save_encoder(encoder, asked.model, folder, step=7)
    return folder


def embedded(folder: Path) -> torch.Tensor:
    source = find_model(str(folder))
    loaded = source.load(source.evaluation("a test").model)
    encoder = loaded.encoder
    assert loaded.step == 7
    with torch.no_grad():
        return encoder.eval()(encoder.backbone.processor.prepare(DIALOGUES)).vectors


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_has_the_same_embeddings_and_no_adapters(name, tmp_path):
    folder = saved(name, tmp_path / "model")
    whole = export(str(folder), tmp_path / "exported")
    assert not (whole / "adapter.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "model"]
    torch.testing.assert_close(embedded(whole), embedded(folder), rtol=0, atol=1e-5)


def test_transformers_and_another_run_start_from_it(tmp_path):
    whole = export(str(saved("adapters", tmp_path / "model")), tmp_path / "exported")
    _, report = AutoModel.from_pretrained(whole, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    settings = {**SMALL, "random_init": None, "pretrained": str(whole)}
    started = QwenVL.build(QwenVL.Config.model_validate(settings), texts=())
    source = find_model(str(whole))
    encoder = source.load(source.evaluation("a test").model).encoder
    for name, weight in started.state_dict().items():
        assert torch.equal(weight, encoder.backbone.state_dict()[name]), name


def test_what_cannot_be_exported_is_told(tmp_path):
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
    assert not (tmp_path / "to").exists()
