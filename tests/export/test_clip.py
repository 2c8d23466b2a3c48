"""Exported CLIP: the same vectors of texts and of images; what a CLIPModel has not, is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from muco.core import Content, MucoError
from muco.export.check import own_vectors
from muco.export.probes import Probes, make_probes
from muco.export.write import write_exported
from muco.model.folder import LoadedModel
from muco.model.source import find_model
from muco.plugins.backbones.clip.transformers_layout import from_transformers, to_transformers
from tests.helpers.model_folders import save_model
from tests.helpers.small import SMALL_CLIP
from tests.helpers.towers import TEXT, VISION, towers_of


def clip(folder: Path, *, quick_gelu: bool = False, **settings: Any) -> dict[str, Any]:
    start = towers_of({**VISION, "layers": 2}, {**TEXT, "layers": 2}, folder)
    config = json.loads((start / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = quick_gelu
    (start / "open_clip_config.json").write_text(json.dumps(config))
    return {"name": "clip", "pretrained": str(start), **settings}


def load(folder: Path) -> LoadedModel:
    source = find_model(str(folder))
    return source.load(source.evaluation("a test").model)


@pytest.mark.parametrize(
    ("settings", "pooler"),
    [
        ({"adapter": {"rank": 2, "targets": ["in_proj", "c_fc"]}}, {"name": "mean", "projection_dim": 8}),
        ({"fusion": "mlp", "quick_gelu": True}, "turn_token"),
    ],
)
def test_texts_and_images_have_the_vectors_of_muco_and_muco_reads_all_of_it(tmp_path, settings, pooler):
    backbone = clip(tmp_path / "start", truncate=True, **settings)
    model, folder = save_model(tmp_path / "model", backbone=backbone, pooler=pooler), tmp_path / "exported"
    agreements = write_exported(find_model(str(model)), folder, check=True, license_id=None)
    assert {each.kind for each in agreements} == {"text", "image"}
    assert min(each.cosine for each in agreements) >= 0.9999
    assert "not both" in (folder / "README.md").read_text()
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]

    ours, again = load(model), load(folder)
    text, image = (make_probes({kind})[-1].contents[0] for kind in ("text", "image"))
    both = [Probes("both", (text, image, Content(text.text, image.images)))]
    expected, found = (own_vectors(each.encoder, each.packer, both)[0] for each in (ours, again))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    started = {**backbone, "pretrained": str(folder), "adapter": None}
    save_model(tmp_path / "again", backbone=started, pooler=pooler)


def test_the_names_of_transformers_lead_back(tmp_path):
    backbone = clip(tmp_path / "start")
    model = save_model(tmp_path / "model", backbone=backbone)
    weights = load_file(model / "open_clip_model.safetensors")
    again = from_transformers(to_transformers(weights))
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_tower": {"name": "test_vit"}, **SMALL_CLIP}, "no image tower TimmModel"),
        (SMALL_CLIP, "no image tower that pools by 'avg'.*`--layout muco` writes it"),
    ],
)
def test_what_a_clip_model_has_not_is_refused_with_the_reason(tmp_path, changes, reason):
    model = save_model(tmp_path / "model", backbone={"name": "clip", **changes})
    with pytest.raises(MucoError, match=reason):
        write_exported(find_model(str(model)), tmp_path / "exported", check=False, license_id=None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
