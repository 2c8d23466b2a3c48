"""Checkpoints of every family of decoders: loaded whole, without the head, or not at all."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from muco.core import DataError
from muco.plugins.backbones.decoder.backbone import DecoderBackbone
from muco.testing import dialogue_of, states
from tests.helpers import small
from tests.helpers.backbones import BACKBONES, REGISTRY
from tests.helpers.small import LLAVA_FAMILIES, TEXTS, picture

DIALOGUE = dialogue_of(["what is it?"], [picture("red", (56, 56)), picture("blue", (61, 149))])


@pytest.fixture(params=[*small.FAMILIES, *LLAVA_FAMILIES])
def saved(request, tmp_path) -> tuple[DecoderBackbone, dict]:
    """Return a model saved to `tmp_path`, and the settings that begin with it."""
    name, settings = BACKBONES[request.param]
    cls = REGISTRY.component("backbone", name)
    torch.manual_seed(0)
    backbone = cls.build(cls.Config.model_validate(settings), texts=TEXTS).eval()
    backbone.save(tmp_path)
    return backbone, {**settings, "random_init": None, "pretrained": str(tmp_path), "template": "bare"}


def started(backbone: DecoderBackbone, settings: dict) -> DecoderBackbone:
    return type(backbone).build(type(backbone).Config.model_validate(settings), texts=()).eval()


def test_a_generating_checkpoint_loads_without_its_head(saved, tmp_path):
    from transformers import AutoModelForImageTextToText

    backbone, settings = saved
    model = AutoModelForImageTextToText.from_config(backbone.model.config)
    model.model.load_state_dict(backbone.model.state_dict())
    model.save_pretrained(tmp_path)
    settings["template"] = BACKBONES[backbone.model.config.model_type][1].get("template", "auto")
    assert torch.equal(states(started(backbone, settings), [DIALOGUE]), states(backbone, [DIALOGUE]))


def test_missing_and_unexpected_weights_are_errors(saved, tmp_path):
    backbone, settings = saved
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if name.endswith("q_proj.weight"))
    weights["stray"] = weights.pop(gone)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"missing: .*q_proj.weight; unexpected: .*stray"):
        started(backbone, settings)


@pytest.mark.parametrize("family", [*small.FAMILIES, *LLAVA_FAMILIES, "idefics"])
def test_an_image_of_several_dialogues_is_encoded_once(family):
    name, settings = BACKBONES[family]
    cls = REGISTRY.component("backbone", name)
    torch.manual_seed(0)
    backbone = cls.build(cls.Config.model_validate(settings), texts=TEXTS).eval()
    red, blue = picture("red", (56, 56)), picture("blue", (61, 149))
    shown = [(red, blue), (blue, red), (red,), (blue, blue)]
    dialogues = [dialogue_of([f"what is {row}?"], images) for row, images in enumerate(shown)]
    inputs = backbone.processor.prepare(dialogues)
    both = backbone.processor.prepare([dialogues[0]])
    if not hasattr(backbone.processor, "tiling"):  # a LLaVA image beside others may have fewer tiles
        assert inputs.num_patches == both.num_patches
        assert inputs.tensors["pixel_values"].shape == both.tensors["pixel_values"].shape
    apart = torch.cat([states(backbone, [dialogue]) for dialogue in dialogues])
    torch.testing.assert_close(states(backbone, dialogues), apart, rtol=1e-5, atol=1e-5)
