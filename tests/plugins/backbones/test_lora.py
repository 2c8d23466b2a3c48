"""Adapters: what is trained, what is saved, and that merging leaves every embedding as it is."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from muco.core import DataError, MucoError
from muco.plugins.backbones.llava import Llava
from muco.plugins.backbones.lora import ADAPTER_FILE
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.testing import dialogue_of, states
from tests.helpers.small import SMALL, TEXTS, picture, small, small_llava

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
    states_of = backbone.encode(backbone.processor.prepare(DIALOGUES))
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
    with pytest.raises(MucoError, match=r"name ends in 'q_prok'; allowed are .*q_proj"):
        build({"targets": ["q_prok"]})
    with pytest.raises(ValidationError, match="leave `freeze_vision` at null"):
        build({"vision": True}, freeze_vision=False)
    with pytest.raises(ValidationError, match=r"adapter\.targets\n.*at least 1 item"):
        build({"targets": []})


# From stage 1 to stage 2

STARTS = {
    "qwen2_vl": (QwenVL, small("qwen2_vl")),
    "qwen3_vl": (QwenVL, small("qwen3_vl")),
    "llava": (Llava, small_llava("llava")),
    "llava_onevision": (Llava, small_llava("llava_onevision")),
}


def stage(family: str, *, start=None, **options):
    """Return a backbone with random weights, or with those of a folder."""
    cls, settings = STARTS[family]
    origin = {} if start is None else {"random_init": None, "pretrained": str(start)}
    torch.manual_seed(0)
    return cls.build(cls.Config.model_validate({**settings, **origin, **options}), texts=TEXTS).eval()


def unit(backbone) -> torch.Tensor:
    return F.normalize(states(backbone, DIALOGUES).float(), dim=-1)


@pytest.mark.parametrize("family", STARTS)
@pytest.mark.parametrize(
    ("first", "dtype", "tolerance"),
    [
        ({"rank": 4}, "float32", 1e-6),
        ({"rank": 4, "dora": False, "targets": ["q_proj", "up_proj"]}, "float32", 1e-6),
        ({"rank": 4, "vision": True}, "bfloat16", 3e-2),
    ],
)
def test_stage_2_starts_where_stage_1_with_adapters_ended(tmp_path, family, first, dtype, tolerance):
    one = moved(stage(family, adapter=first, dtype=dtype))
    one.save(tmp_path / "one")
    expected = unit(one)
    assert float((expected - unit(stage(family, dtype=dtype))).abs().max()) > 3 * tolerance
    whole = stage(family, start=tmp_path / "one", dtype=dtype)
    torch.testing.assert_close(unit(whole), expected, rtol=0, atol=tolerance)
    one.merge_adapters()
    assert torch.equal(unit(whole), unit(one))
    assert all(weight.requires_grad for weight in whole.parameters())
    second = {"rank": 2, "dora": True, "targets": ["v_proj"]}
    two = stage(family, start=tmp_path / "one", adapter=second, dtype=dtype)
    assert torch.equal(unit(two), unit(one))
    assert trained(two) == trained(stage(family, adapter=second))
    moved(two).save(tmp_path / "two")
    config = type(two).Config.model_validate(
        {**STARTS[family][1], "random_init": None, "pretrained": "gone", "adapter": second, "dtype": dtype}
    )
    assert torch.equal(unit(type(two).load(config, tmp_path / "two").eval()), unit(two))


def test_a_file_says_what_made_it(tmp_path):
    build({"rank": 4, "targets": ["q_proj"]}).save(tmp_path)
    with safe_open(tmp_path / ADAPTER_FILE, "pt") as opened:
        metadata = json.loads(opened.metadata()["adapter"])
    assert metadata == {
        "rank": 4, "alpha": 64.0, "dropout": 0.1, "dora": True, "init": "gaussian", "targets": ["q_proj"],
        "vision": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "metadata has no 'adapter'"),
        ("{", "'adapter' of its metadata is not valid"),
        ('{"rank": 4, "run": "rm"}', r"not valid\. run: Extra inputs"),
        ('{"rank": 4, "alpha": -1}', r"not valid\. alpha"),
        ('{"rank": 1000000000}', "says rank 1000000000, its weights have rank 4"),
        ('{"rank": 4, "dora": false}', r"cannot be merged: .*unexpected: .*lora_magnitude"),
        (
            '{"rank": 4, "targets": ["k_proj"]}',
            r"cannot be merged: .*missing: .*k_proj.*unexpected: .*q_proj",
        ),
        ('{"rank": 4, "targets": ["gone"]}', r"cannot be merged: .*ends in 'gone'"),
    ],
)
def test_settings_that_are_missing_or_tampered_with_are_errors(tmp_path, text, error):
    build({"rank": 4, "targets": ["q_proj"]}).save(tmp_path)
    weights = load_file(tmp_path / ADAPTER_FILE)
    save_file(weights, tmp_path / ADAPTER_FILE, metadata=None if text is None else {"adapter": text})
    with pytest.raises(DataError, match=error):
        build(None, random_init=None, pretrained=str(tmp_path))


def test_files_that_are_broken_or_not_finite_are_errors(tmp_path):
    made = build({"rank": 4})
    made.rows.weight.data[0] = 0
    next(w for name, w in made.named_parameters() if "lora_B" in name).data.fill_(float("nan"))
    made.save(tmp_path)
    with pytest.raises(DataError, match=r"backbone\.pretrained: .*NaN"):
        build(None, random_init=None, pretrained=str(tmp_path))
    (tmp_path / ADAPTER_FILE).write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"adapter\.safetensors: it cannot be read"):
        build(None, random_init=None, pretrained=str(tmp_path))


def test_another_scale_than_the_one_it_was_made_with_is_an_error(tmp_path):
    build({"rank": 4, "alpha": 8.0}).save(tmp_path)
    config = QwenVL.Config.model_validate({**SMALL, "adapter": {"rank": 4, "alpha": 16.0}})
    with pytest.raises(DataError, match=r"made with `alpha: 8`, but `adapter.alpha` is 16"):
        QwenVL.load(config, tmp_path)
