"""Adapters: what is trained, what is saved, and that merging leaves every embedding as it is."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from muco.core import DataError, MucoError
from muco.plugins._shared.adapters import ADAPTER_FILE
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.testing.encoding import dialogue_of, states
from tests.small import SMALL, TEXTS, picture

DIALOGUES = [
    dialogue_of(["what is it?", "a"], [picture("red", (56, 56)), picture("blue", (80, 40))]),
    dialogue_of(["where is it?"], ()),
]


def build(adapter: dict | None, **options) -> QwenVL:
    torch.manual_seed(0)
    config = QwenVL.Config.model_validate({**SMALL, "adapter": adapter, **options})
    return QwenVL.build(config, texts=TEXTS).eval()


def moved(backbone: QwenVL) -> QwenVL:
    """Change every trained weight, as training would."""
    torch.manual_seed(1)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    return backbone


def trained(backbone: QwenVL) -> set[str]:
    return {name for name, weight in backbone.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dora", [True, False])
def test_an_adapter_starts_as_nothing_and_is_float32(dtype, dora):
    backbone = build({"dora": dora}, dtype=dtype)
    assert torch.equal(states(backbone, DIALOGUES), states(build(None, dtype=dtype), DIALOGUES))
    kept = {weight.dtype for weight in backbone.parameters() if not weight.requires_grad}
    assert kept == {getattr(torch, dtype)}
    assert {weight.dtype for weight in backbone.parameters() if weight.requires_grad} == {torch.float32}


def test_the_first_matrix_is_drawn_as_init_says():
    """gaussian: a deviation of 1 / rank. kaiming: uniform within 1 / sqrt(inputs)."""
    first = {
        init: build({"init": init, "rank": 4}).model.language_model.layers[0].mlp.up_proj.lora_A.state_dict()
        for init in ("gaussian", "kaiming")
    }
    gaussian, kaiming = first["gaussian"]["default.weight"], first["kaiming"]["default.weight"]
    assert float(gaussian.std()) == pytest.approx(0.25, rel=0.2)
    assert float(kaiming.abs().max()) == pytest.approx(32**-0.5, rel=0.1)


def test_adapters_and_the_rows_of_the_new_tokens_are_trained_and_nothing_else():
    backbone = build({"targets": ["q_proj", "self_attn.v_proj"]})
    names = trained(backbone)
    assert names == {
        "rows.weight",
        *(
            f"model.language_model.layers.{layer}.self_attn.{map_}.{part}.default.weight"
            for layer in (0, 1)
            for map_ in ("q_proj", "v_proj")
            for part in ("lora_A", "lora_B", "lora_magnitude_vector")
        ),
    }
    states_of = backbone.encode(backbone.processor.collate(DIALOGUES))
    states_of.hidden.sum().backward()
    gradient = dict(backbone.named_parameters())["rows.weight"].grad
    assert gradient.shape == (2, backbone.hidden_dim)
    assert gradient[0].abs().sum() > 0, "the row of <|emb|> has a gradient"
    assert gradient[1].abs().sum() == 0, "no <|mask|> was read"


def test_every_linear_map_of_the_language_model_is_adapted_by_default():
    backbone = build({})
    linear = [m for m in build(None).model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    assert len([name for name in trained(backbone) if ".lora_A." in name]) == len(linear)
    assert not any("visual" in name for name in trained(backbone))


@pytest.mark.parametrize(
    ("adapter", "freeze", "expected"),
    [(None, None, "all"), (None, True, "none"), ({}, None, "none"), ({}, True, "none"), ({}, False, "all"),
     ({"vision": True}, None, "adapters")],
)  # fmt: skip
def test_the_vision_tower_is_frozen_as_the_settings_say(adapter, freeze, expected):
    visual = {name for name in trained(build(adapter, freeze_vision=freeze)) if "visual" in name}
    whole = {name for name, _ in build(None).named_parameters() if "visual" in name}
    if expected == "adapters":
        assert visual
        assert all(".lora_" in name for name in visual)
    else:
        assert visual == (whole if expected == "all" else set())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", [{}, {"dora": False}, {"vision": True, "targets": ["proj", "q_proj"]}])
def test_a_saved_model_is_the_same_bit_for_bit(adapter, dtype, tmp_path):
    backbone = moved(build(adapter, dtype=dtype))
    backbone.save(tmp_path)
    config = QwenVL.Config.model_validate({**SMALL, "adapter": adapter, "dtype": dtype})
    again = QwenVL.load(config, tmp_path).eval()
    assert trained(again) == trained(backbone)
    for (name, found), (other, expected) in zip(
        again.named_parameters(), backbone.named_parameters(), strict=True
    ):
        assert name == other
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), name
    assert torch.equal(states(again, DIALOGUES), states(backbone, DIALOGUES))


@pytest.mark.parametrize("adapter", [{}, {"dora": False}, {"vision": True}])
def test_merged_embeddings_equal_unmerged_ones(adapter, tmp_path):
    backbone = moved(build(adapter))
    plain = build(None)
    expected = states(backbone, DIALOGUES)
    assert float((expected - states(plain, DIALOGUES)).abs().max()) > 0.01
    backbone.merge_adapters()
    torch.testing.assert_close(states(backbone, DIALOGUES), expected, rtol=0, atol=1e-5)
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    backbone.save(tmp_path)
    loaded = QwenVL.load(QwenVL.Config.model_validate(SMALL), tmp_path).eval()
    assert torch.equal(states(loaded, DIALOGUES), states(backbone, DIALOGUES))


def test_weights_that_do_not_fit_the_settings_are_errors(tmp_path):
    backbone = build({"dora": False, "targets": ["q_proj"]})
    backbone.save(tmp_path)

    def load(adapter):
        return QwenVL.load(QwenVL.Config.model_validate({**SMALL, "adapter": adapter}), tmp_path)

    with pytest.raises(DataError, match=r"missing: .*k_proj\.lora_A"):
        load({"dora": False, "targets": ["q_proj", "k_proj"]})
    with pytest.raises(DataError, match=r"of another shape: .*q_proj\.lora_A"):
        load({"dora": False, "targets": ["q_proj"], "rank": 2})
    with pytest.raises(DataError, match="adapter: null"):
        load(None)
    weights = load_file(tmp_path / ADAPTER_FILE)
    save_file({**weights, "stray": torch.zeros(1)}, tmp_path / ADAPTER_FILE)
    with pytest.raises(DataError, match="unexpected: stray"):
        load({"dora": False, "targets": ["q_proj"]})
    (tmp_path / ADAPTER_FILE).unlink()
    with pytest.raises(DataError, match=f"no {ADAPTER_FILE}"):
        load({"dora": False, "targets": ["q_proj"]})


def test_settings_that_mean_nothing_are_errors():
    with pytest.raises(MucoError, match=r"no linear map ends in 'q_prok'; there are .*q_proj"):
        build({"targets": ["q_prok"]})
    with pytest.raises(ValidationError, match="leave `freeze_vision` at null"):
        build({"vision": True}, freeze_vision=False)
