from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModel

from muco.core import DataError, EncodedImage, MucoError
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.testing import check_backbone, dialogue_of, states
from tests.helpers.small import FAMILIES, SMALL, TEXTS, picture, small

IMAGES = [picture("red", (56, 56)), picture("blue", (80, 40))]


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request):
    torch.manual_seed(0)
    return QwenVL.build(QwenVL.Config.model_validate(small(request.param)), texts=TEXTS).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_keeps_the_contract_with_the_chat_template(registry, tmp_path, family):
    settings = small(family, template="chatml")
    check_backbone(registry, "qwen_vl", settings, texts=TEXTS, images=IMAGES, folder=tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", ["bare", "chatml"])
def test_isolated_turns_equal_single_turn_passes(family, template):
    """Promise 1, for images of several sizes and texts of one token and of many."""
    torch.manual_seed(1)
    config = QwenVL.Config.model_validate(small(family, template=template))
    backbone = QwenVL.build(config, texts=TEXTS).eval()
    questions = ["a", "what is the colour of the circle?", "b", "where is it? " * 9]
    rows = [dialogue_of(questions, IMAGES, "isolated"), dialogue_of(questions[:2], (), "isolated")]
    separate = [dialogue_of([text], IMAGES) for text in questions] + [
        dialogue_of([text], ()) for text in questions[:2]
    ]
    expected = torch.cat([states(backbone, [dialogue]) for dialogue in separate])
    torch.testing.assert_close(states(backbone, rows), expected, rtol=0, atol=1e-5)


def test_causal_turns_see_the_earlier_ones(backbone):
    one = states(backbone, [dialogue_of(["a", "what is it?"], IMAGES)])
    other = states(backbone, [dialogue_of(["b", "what is it?"], IMAGES)])
    assert (one[1] - other[1]).abs().max() > 1e-3


def test_positions_are_those_of_transformers(backbone):
    dialogue = dialogue_of(["what is it?", "a"], IMAGES)
    tensors = backbone.processor.prepare([dialogue]).tensors
    is_image = (tensors["input_ids"] == backbone.processor.image_id).int()
    expected, _ = backbone.model.get_rope_index(tensors["input_ids"], is_image, tensors["image_grid_thw"])
    assert torch.equal(tensors["position_ids"], expected)


def test_equals_the_whole_transformers_model(backbone):
    """Our seam (embed, place image features, language model) is the model's own forward."""
    dialogue = dialogue_of(["what is it?"], IMAGES)
    tensors = backbone.processor.prepare([dialogue]).tensors
    own = backbone.processor.image_processor([each.decode() for each in IMAGES], return_tensors="pt")
    whole = copy.deepcopy(backbone.model)
    whole.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = whole(
            input_ids=tensors["input_ids"],
            pixel_values=own["pixel_values"],
            image_grid_thw=tensors["image_grid_thw"],
            mm_token_type_ids=(tensors["input_ids"] == backbone.processor.image_id).int(),
            use_cache=False,
        ).last_hidden_state
        found = backbone.encode(backbone.processor.prepare([dialogue])).hidden
    torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-5)


def test_the_vision_tower_is_that_of_transformers(backbone):
    """Outputs and gradients, for images of equal and of other sizes, one larger than a window."""
    own = copy.deepcopy(backbone.model.visual).double()
    bias = own.patch_embed.proj.bias
    if bias is not None:  # zero in random weights
        torch.nn.init.normal_(bias)
    config = backbone.model.config
    theirs = AutoModel.from_config(config).visual.double()
    theirs.load_state_dict(own.state_dict())
    grids = torch.tensor([[1, 4, 4], [1, 2, 6], [1, 4, 4], [1, 4, 20]])
    patches = torch.randn(int(grids.prod(1).sum()), own.patch_embed.proj.weight[0].numel())
    outputs, gradients = [], []
    for tower in (own, theirs):
        output = tower(patches, grid_thw=grids)
        features = [output.pooler_output, *getattr(output, "deepstack_features", ())]
        loss = torch.stack([each.square().sum() for each in features]).sum()
        outputs.append(features)
        gradients.append(torch.autograd.grad(loss, list(tower.parameters())))
    # transformers rotates in float32.
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    assert (bias is not None) == (config.model_type == "qwen3_vl")


def test_chatml_renders_the_public_base_template():
    config = QwenVL.Config.model_validate({**SMALL, "template": "chatml"})
    processor = QwenVL.build(config, texts=TEXTS).processor
    dialogue = dialogue_of(["what is it?\n"], ())
    whole = type(dialogue)("You are a helpful assistant.", IMAGES[:1], dialogue.turns)
    ids = processor.prepare([whole]).tensors["input_ids"][0]
    pad = "<|image_pad|>"
    text = processor.tokenizer.decode(ids).replace(pad * 4, pad)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{pad}<|vision_end|>\nwhat is it?\n<|im_end|>\n"
        "<|im_start|>assistant\n<|emb|><|im_end|>"
    )


def test_special_tokens_in_a_users_text_are_ordinary_characters(backbone):
    text = "<|emb|> <|image_pad|> <|im_start|>system"
    inputs = backbone.processor.prepare([dialogue_of([text], ())])
    ids = inputs.tensors["input_ids"][0]
    assert (ids == backbone.processor.emb_id).sum() == 1
    assert (ids == backbone.processor.image_id).sum() == 0
    assert text in backbone.processor.tokenizer.decode(ids)


def test_the_language_model_head_is_never_there(backbone):
    assert not [name for name, _ in backbone.named_parameters() if "lm_head" in name]


def test_a_broken_image_is_named(backbone):
    whole = IMAGES[0].data
    for data in (b"no image", whole[: len(whole) // 2]):
        with pytest.raises(DataError, match="image"):
            backbone.processor.prepare([dialogue_of(["a"], [EncodedImage(data)])])


def test_an_image_too_long_for_the_processor_is_named(backbone):
    with pytest.raises(DataError, match="8001 x 40 pixels"):
        backbone.processor.prepare([dialogue_of(["a"], [picture("red", (8001, 40))])])


PUBLIC_BOUNDS = {"min_pixels": 256 * 28 * 28, "max_pixels": 1280 * 28 * 28}


@pytest.mark.parametrize(
    ("small_images", "size", "grid"),
    [
        ("square", (20, 40), [1, 32, 32]),
        ("square", (27, 2000), [1, 32, 32]),
        ("square", (28, 40), [1, 40, 28]),
        ("keep_ratio", (20, 40), [1, 46, 24]),
    ],
)
def test_images_smaller_than_a_token_are_resized_as_the_setting_says(small_images, size, grid):
    config = QwenVL.Config.model_validate({**SMALL, **PUBLIC_BOUNDS, "small_images": small_images})
    processor = QwenVL.build(config, texts=TEXTS).processor
    image = picture("red", size)
    tensors = processor.prepare([dialogue_of(["a"], [image])]).tensors
    assert tensors["image_grid_thw"].tolist() == [grid]
    assert (tensors["input_ids"] == processor.image_id).sum() == grid[1] * grid[2] // 4
    before = image.decode() if size[0] == 28 or small_images != "square" else image.decode().resize((56, 56))
    expected = processor.image_processor(before, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor.colors(tensors["pixel_values"]), expected, rtol=0, atol=1e-5)


def test_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    config = QwenVL.Config.model_validate({**SMALL, "random_init": None, "pretrained": str(tmp_path)})
    with pytest.raises(MucoError, match="bert model"):
        QwenVL.build(config, texts=())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{}", "model_type"),
        ("config.json", '{"model_type": "qwen9_vl"}', "qwen9_vl"),
        ("model.safetensors", "no weights", "cannot be loaded"),
        ("tokenizer.json", "{", "its tokenizer cannot be loaded"),
        ("tokenizer.json", "{}", "its tokenizer cannot be loaded"),
        ("tokenizer*.json", None, "its tokenizer encodes text to nothing"),
    ],
)
def test_a_checkpoint_that_is_broken_or_not_whole_is_named(tmp_path, file, content, message):
    QwenVL.build(QwenVL.Config.model_validate(SMALL), texts=TEXTS).save(tmp_path)
    for each in tmp_path.glob(file):
        each.unlink() if content is None else each.write_text(content)
    config = QwenVL.Config.model_validate({**SMALL, "random_init": None, "pretrained": str(tmp_path)})
    for read in (lambda: QwenVL.build(config, texts=()), lambda: QwenVL.load(config, tmp_path)):
        with pytest.raises(MucoError, match=message):
            read()


def test_a_checkpoint_of_the_home_folder_is_found(tmp_path, monkeypatch):
    made = QwenVL.build(QwenVL.Config.model_validate(SMALL), texts=TEXTS).eval()
    made.save(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = QwenVL.Config.model_validate({**SMALL, "random_init": None, "pretrained": "~/mine"})
    found = QwenVL.build(config, texts=()).eval()
    dialogues = [dialogue_of(["what is it?"], IMAGES)]
    assert torch.equal(states(found, dialogues), states(made, dialogues))


ADAPTER = {"rank": 4, "alpha": 8.0, "dropout": 0.2}


@pytest.mark.parametrize("options", [{}, {"adapter": ADAPTER}], ids=["whole", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_against_the_gradient_lowers_the_loss_of_a_fixed_batch(family, options):
    torch.manual_seed(0)
    backbone = QwenVL.build(QwenVL.Config.model_validate(small(family, **options)), texts=TEXTS).eval()
    dialogues = [dialogue_of([text], IMAGES[:1]) for text in ("what is it?", "where?", "a red circle")]
    inputs = backbone.processor.prepare(dialogues)
    goal = torch.randn(3, backbone.hidden_dim)

    def loss() -> torch.Tensor:
        found = backbone.encode(inputs)
        return (found.hidden[found.spans.token] - goal).square().mean()

    weights = [weight for weight in backbone.parameters() if weight.requires_grad]
    before = loss()
    gradients = torch.autograd.grad(before, weights, allow_unused=True)
    slope = sum(float(each.square().sum()) for each in gradients if each is not None)
    size = 1e-3 * float(before.detach()) / slope
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight -= size * gradient
        after = loss()
    assert float((before - after).detach()) == pytest.approx(size * slope, rel=0.1)


def test_random_weights_do_not_enlarge_small_images_by_default():
    assert QwenVL.Config.model_validate({"random_init": {}}).min_pixels == 4 * 28 * 28
    assert QwenVL.Config.model_validate({"random_init": {}, "min_pixels": 9408}).min_pixels == 9408
    assert QwenVL.Config.model_validate({"pretrained": "org/name"}).min_pixels == 256 * 28 * 28
