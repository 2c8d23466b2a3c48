"""Idefics3: its modules have other names than those of Qwen-VL and LLaVA."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from muco.core import Dialogue, MucoError
from muco.core.video import Video
from muco.plugins.backbones.idefics import Idefics
from muco.testing import check_backbone, dialogue_of, states
from tests.helpers.small import TEXTS, picture, small_idefics

IMAGES = [picture("red", (56, 56)), picture("blue", (170, 43)), picture("green", (61, 149))]
ASKED = ["a", "what is the colour of the circle?", "b", "where is it? " * 9]
ADAPTER = {"rank": 4, "dropout": 0.0}


def build(**options: object) -> Idefics:
    torch.manual_seed(0)
    return Idefics.build(Idefics.Config.model_validate(small_idefics(**options)), texts=TEXTS).eval()


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "split"])
def backbone(request) -> Idefics:
    return build(split_images=request.param)


def their_inputs(backbone: Idefics, text: str, images) -> dict[str, torch.Tensor]:
    """Return what transformers' own processor makes of a text with `<image>` in it."""
    from transformers import Idefics3Processor

    ours = backbone.processor
    processor = Idefics3Processor(
        ours.image_processor, copy.deepcopy(ours.tokenizer), image_seq_len=ours.tile_tokens
    )
    return processor(text=text, images=[[image.decode() for image in images]], return_tensors="pt")


@pytest.mark.parametrize("options", [{}, {"rows": "padded", "adapter": ADAPTER}])
def test_keeps_the_contract(registry, tmp_path, options):
    settings = small_idefics(**options)
    check_backbone(registry, "idefics", settings, texts=TEXTS, images=IMAGES[1:], folder=tmp_path)


def test_isolated_turns_equal_single_turn_passes(backbone):
    seen = [IMAGES[:1], IMAGES[1:], ()]
    rows = [dialogue_of(ASKED, images, "isolated") for images in seen]
    separate = [dialogue_of([text], images) for images in seen for text in ASKED]
    expected = torch.cat([states(backbone, [dialogue]) for dialogue in separate])
    torch.testing.assert_close(states(backbone, rows), expected, rtol=0, atol=1e-5)


def test_tokens_pixels_and_states_are_those_of_transformers(backbone):
    turns = dialogue_of(["what is it?"], ()).turns
    inputs = backbone.processor.prepare([Dialogue("Be brief.", tuple(IMAGES), turns)])
    text = (
        "System: Be brief.<end_of_utterance>\nUser:<image><image><image>what is it?<end_of_utterance>\n"
        "Assistant:<|emb|><end_of_utterance>"
    )
    theirs = their_inputs(backbone, text, IMAGES)
    assert torch.equal(inputs.tensors["input_ids"], theirs["input_ids"])
    pixels = backbone.processor.colors(inputs.tensors["pixel_values"])
    torch.testing.assert_close(pixels, theirs["pixel_values"][0], rtol=0, atol=1e-5)
    whole = copy.deepcopy(backbone.model)
    whole.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = whole(**theirs, use_cache=False).last_hidden_state[0]
        found = backbone.encode(inputs).hidden
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(56, 56), (57, 56), (300, 20), (113, 224), (3, 400), (211, 107), (100, 99)])
@pytest.mark.parametrize("edge", [40, 112, 150, 300])
def test_the_grid_is_that_of_the_image_processor(size, edge):
    processor = build(split_images=True, longest_edge_pixels=edge).processor
    image = picture("red", size)
    made = processor.image_processor([[image.decode()]], do_pad=False, return_row_col_info=True)
    assert processor.grid(size[1], size[0]) == (made["rows"][0][0], made["cols"][0][0])
    rendered = processor.render(dialogue_of(["a"], [image]))
    assert rendered.cost.patches == 16 * np.stack(made["pixel_values"][0]).shape[0]


def test_turns_follow_in_the_words_of_the_chat_template():
    processor = build().processor
    ids = processor.prepare([dialogue_of(["what is it?", "a"], ())]).tensors["input_ids"][0]
    assert processor.tokenizer.decode(ids) == (
        "User: what is it?<end_of_utterance>\nAssistant:<|emb|><end_of_utterance>"
        "\nUser: a<end_of_utterance>\nAssistant:<|emb|><end_of_utterance>"
    )


def test_special_tokens_in_a_users_text_are_ordinary_characters(backbone):
    text = "<|emb|> <image> <fake_token_around_image> <row_1_col_1>"
    processor = backbone.processor
    ids, plain = (
        processor.prepare([dialogue_of([each], ())]).tensors["input_ids"][0].tolist() for each in (text, "a")
    )
    special = set(processor.tokenizer.all_special_ids)
    assert [each for each in ids if each in special] == [each for each in plain if each in special]


@pytest.mark.parametrize("options", [{}, {"adapter": ADAPTER}, {"freeze_vision": True}])
def test_a_step_against_the_gradient_lowers_the_loss(options):
    backbone = build(**options)
    inputs = backbone.processor.prepare(dialogue_of([text], IMAGES[:1]) for text in ASKED)
    goal = torch.randn(len(ASKED), backbone.hidden_dim)

    def loss() -> torch.Tensor:
        found = backbone.encode(inputs)
        return (found.hidden[found.spans.token] - goal).square().mean()

    weights = {name: each for name, each in backbone.named_parameters() if each.requires_grad}
    before = loss()
    before.backward()
    before = before.detach()
    slope = sum(float(each.grad.square().sum()) for each in weights.values() if each.grad is not None)
    with torch.no_grad():
        for weight in weights.values():
            if weight.grad is not None:
                weight -= 1e-3 * float(before) / slope * weight.grad
    assert float(before - loss().detach()) == pytest.approx(1e-3 * float(before), rel=0.1)
    trains_connector = any(name.startswith("model.connector") for name in weights)
    assert trains_connector == ("adapter" not in options)
    assert any("vision_model" in name for name in weights) == (not options)


def test_a_checkpoint_decides_about_tiles_unless_the_recipe_does(tmp_path):
    split = build(split_images=True)
    split.save(tmp_path)

    def loaded(**options: object) -> Idefics:
        settings = {"pretrained": str(tmp_path), **options}
        return Idefics.build(Idefics.Config.model_validate(settings), texts=()).eval()

    dialogues = [dialogue_of(ASKED[:2], IMAGES[1:2])]
    assert torch.equal(states(loaded(), dialogues), states(split, dialogues))
    assert loaded(split_images=False).processor.render(dialogues[0]).cost.patches == 16
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text().replace("<end_of_utterance>", "<end>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = (tmp_path / "tokenizer_config.json").read_text().replace("<end_of_utterance>", "<end>")
    (tmp_path / "tokenizer_config.json").write_text(special)
    with pytest.raises(MucoError, match="the tokenizer has no <end_of_utterance>"):
        loaded()


def test_videos_are_refused():
    with pytest.raises(MucoError, match="idefics"):
        build().processor.render(dialogue_of(["a"], [Video((picture("red", (56, 56)),))]))
