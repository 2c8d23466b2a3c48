"""LoRA adapters on the towers: trained, saved, loaded, merged and refused."""

from __future__ import annotations

import open_clip
import pytest
import torch

from muco.core import DataError, MucoError
from muco.plugins.backbones.clip import Clip
from muco.plugins.backbones.clip.lora_attention import OpenAttention
from muco.testing import states
from tests.helpers.clip import (
    DIALOGUES,
    build,
    gradients,
    loss_change,
    moved,
    pretrained,
    same,
    stepper,
    trained,
)
from tests.helpers.small import SMALL_CLIP
from tests.helpers.towers import TEXT, VISION, towers_of

ADAPTERS = [
    {"rank": 4},
    {"rank": 4, "dora": False, "vision": True},
    {"rank": 4, "vision": True, "targets": ["in_proj", "c_fc"]},
]
TIMM = {"image_tower": {"name": "test_vit"}}


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_starts_as_nothing(adapter, dtype):
    adapted, plain = build(adapter=adapter, dtype=dtype), build(dtype=dtype)
    near = 1e-6 if dtype == "float32" else 2e-2
    torch.testing.assert_close(states(adapted, DIALOGUES), states(plain, DIALOGUES), rtol=0, atol=near)
    kept = {weight.dtype for weight in adapted.model.parameters() if not weight.requires_grad}
    assert kept == {getattr(torch, dtype)}
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"adapter": {}}, {"text": "adapters", "visual": "none"}),
        ({"adapter": {"vision": True}}, {"text": "adapters", "visual": "adapters"}),
        ({"adapter": {}, "freeze_vision": False}, {"text": "adapters", "visual": "all"}),
        ({"adapter": {}, "freeze_vision": True}, {"text": "adapters", "visual": "none"}),
        ({}, {"text": "all", "visual": "all"}),
    ],
    ids=str,
)
def test_what_is_trained_is_what_the_settings_say(changes, expected):
    names = trained(build(fusion="mlp", **changes))
    plain = build()
    for tower, what in expected.items():
        own = {name for name in names if name.startswith(f"model.{tower}.")}
        whole = {name for name, _ in plain.named_parameters() if name.startswith(f"model.{tower}.")}
        if what == "adapters":
            # Four linear layers in each of two blocks.
            assert len([name for name in own if ".lora_A." in name]) == 8
            assert all(".lora_" in name for name in own)
        else:
            assert own == (whole if what == "all" else set())
    assert any(name.startswith("fusion.") for name in names)
    assert "model.logit_scale" not in names


def test_the_map_beside_a_new_image_tower_is_trained_whole():
    for adapter in ({"rank": 4}, {"rank": 4, "vision": True}):
        names = trained(build(**TIMM, adapter=adapter))
        own = {name for name in names if name.startswith("model.visual.")}
        assert "model.visual.head.proj.weight" in own
        adapters = {name for name in own if name.startswith("model.visual.trunk.")}
        assert adapters == own - {"model.visual.head.proj.weight"}
        assert all(".lora_" in name for name in adapters)
        assert bool(adapters) == bool(adapter.get("vision"))


@pytest.mark.parametrize("tower", [{}, TIMM], ids=["vit", "timm"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_saved_loaded_merged_and_started_from(tmp_path, adapter, dtype, tower):
    if tower and "targets" in adapter:
        adapter = {**adapter, "targets": ["in_proj", "c_fc", "qkv"]}
    options = {"fusion": "mlp", "dtype": dtype, **tower}
    backbone = moved(build(adapter=adapter, **options))
    expected = states(backbone, DIALOGUES)
    untrained = states(build(adapter=adapter, **options), DIALOGUES)
    assert float((expected - untrained)[1].abs().max()) > 0.05, "the text tower did not move"
    backbone.save(tmp_path / "adapted")

    again = Clip.load(backbone.config, tmp_path / "adapted").eval()
    assert trained(again) == trained(backbone)
    assert torch.equal(states(again, DIALOGUES), expected)

    two = pretrained(
        tmp_path / "adapted", fusion="mlp", dtype=dtype, adapter={"rank": 2, "targets": ["c_proj"]}
    )
    whole = pretrained(tmp_path / "adapted", fusion="mlp", dtype=dtype)
    assert trained(whole) == {name for name, _ in whole.named_parameters() if "logit_scale" not in name}
    backbone.merge_adapters()
    near = 5e-6 if dtype == "float32" else 5e-2
    torch.testing.assert_close(states(backbone, DIALOGUES), expected, rtol=0, atol=near)
    assert backbone.model.state_dict().keys() == build(**options).model.state_dict().keys()
    # Torch's closed attention takes another path, equal within rounding, where its weights are trained.
    assert torch.equal(states(whole.requires_grad_(False), DIALOGUES), states(backbone, DIALOGUES))
    torch.testing.assert_close(states(two, DIALOGUES), expected, rtol=0, atol=near)

    backbone.save(tmp_path / "merged")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'merged'}")
    assert model.state_dict().keys() == backbone.model.state_dict().keys()
    config = Clip.Config.model_validate({**SMALL_CLIP, **options})
    merged = Clip.load(config, tmp_path / "merged").eval().requires_grad_(False)
    assert torch.equal(states(merged, DIALOGUES), states(backbone, DIALOGUES))
    with pytest.raises(DataError, match="adapter: null"):
        Clip.load(config, tmp_path / "adapted")


def test_opened_attention_is_that_of_torch():
    """Causal, by a mask a head, and without one; closing gives back what was opened."""
    torch.manual_seed(0)
    closed = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    torch.nn.init.normal_(closed.in_proj_bias)
    opened, rows = OpenAttention(closed), torch.randn(3, 5, 16, requires_grad=True)
    whole = torch.full((5, 5), float("-inf")).triu(1)
    for mask in (None, whole, whole + torch.randn(6, 5, 5)):
        expected, found, again = (
            each(rows, rows, rows, need_weights=False, attn_mask=mask)[0]
            for each in (closed, opened, opened.closed())
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert torch.equal(again, expected)


def test_with_dropout_cached_gradients_equal_plain_ones_through_the_same_chunks(reader):
    adapter = {"rank": 4, "dropout": 0.3, "vision": True}
    plain = gradients(reader, adapter=adapter, budget=60)
    assert any("visual" in name for name in plain[1])
    same(gradients(reader, adapter=adapter, budget=60, cached=True), plain, 1e-10)
    without = gradients(reader, adapter={**adapter, "dropout": 0.0}, budget=60)
    assert abs(without[0] - plain[0]) > 1e-6, "dropout drew nothing: the test shows nothing"


@pytest.mark.parametrize("adapter", [{"rank": 4}, {"rank": 4, "dora": False, "vision": True}], ids=str)
def test_steps_on_adapters_lower_the_loss_of_their_batch(reader, adapter):
    encoder, step = stepper(reader, dtype=torch.float32, adapter={**adapter, "dropout": 0.0})
    frozen = {name: weight.clone() for name, weight in encoder.named_parameters() if not weight.requires_grad}
    for weight in encoder.backbone.fusion.parameters():
        weight.requires_grad = False
    assert loss_change(encoder, step) < -0.02
    assert all(torch.equal(dict(encoder.named_parameters())[name], each) for name, each in frozen.items())


@pytest.mark.parametrize(
    ("vision", "adapter", "message"),
    [
        ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}, {"vision": True},
         r"no linear layer that can have adapters\. Set `adapter\.vision: false`"),
        ({**VISION, "qk_norm": True}, {"vision": True},
         r"in_proj_weight of these.*`adapter\.targets: \[c_fc, c_proj, in_proj, out_proj\]`"),
        (VISION, {"targets": ["q_proj"]}, r"name ends in 'q_proj'; allowed are c_fc, c_proj, in_proj"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_is_reported_with_what_can(tmp_path, vision, adapter, message):
    folder = towers_of(vision, TEXT, tmp_path)
    with pytest.raises(MucoError, match=message):
        pretrained(folder, adapter=adapter)
    fits = {"vision": "qk_norm" in vision, "targets": ["c_fc", "c_proj"]}
    assert any(".lora_A." in name for name in trained(pretrained(folder, adapter=fits)))


def test_a_text_tower_is_frozen_or_adapted():
    with pytest.raises(ValueError, match="leave `freeze_text` at false"):
        build(adapter={}, freeze_text=True)
