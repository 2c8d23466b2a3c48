from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muco.core import DataError, Dialogue, MucoError, TurnEncoder
from muco.core.sample import Content
from muco.plugins.backbones.decoder.attention import RowSettings
from muco.plugins.backbones.decoder.chat_templates import find_template
from muco.plugins.backbones.llava import Llava
from muco.plugins.backbones.llava.processor import LlavaProcessor
from muco.plugins.poolers.turn_token import TurnToken
from muco.testing import check_backbone, dialogue_of, states
from tests.helpers.gradients import gradients, ragged, same
from tests.helpers.llama_tokenizer import llama_tokenizer
from tests.helpers.small import LLAVA_FAMILIES, TEXTS, picture, small_llava

IMAGES = [picture("red", (56, 56)), picture("blue", (170, 43)), picture("green", (61, 149))]
ASKED = ["a", "what is the colour of the circle?", "b", "where is it? " * 9]


def build(family: str, **options: object) -> Llava:
    torch.manual_seed(0)
    return Llava.build(Llava.Config.model_validate(small_llava(family, **options)), texts=TEXTS).eval()


def pretrained(folder, **options: object) -> Llava.Config:
    return Llava.Config.model_validate({"pretrained": str(folder), "template": "bare", **options})


@pytest.fixture(scope="module", params=LLAVA_FAMILIES)
def backbone(request) -> Llava:
    return build(request.param)


@pytest.fixture
def their_processor(backbone: Llava):
    """Return transformers' own processor around our tokenizer and image processor."""
    from transformers import LlavaNextProcessor, LlavaOnevisionProcessor, LlavaProcessor
    from transformers.models.llava_onevision.video_processing_llava_onevision import (
        LlavaOnevisionVideoProcessor,
    )

    family, processor = backbone.model.config.model_type, backbone.processor
    settings = {
        "image_processor": processor.image_processor,
        "tokenizer": processor.tokenizer,
        "vision_feature_select_strategy": backbone.model.config.vision_feature_select_strategy,
    }
    if family == "llava_onevision":
        videos = LlavaOnevisionVideoProcessor()
        return LlavaOnevisionProcessor(**settings, video_processor=videos, num_image_tokens=16)
    cls = {"llava": LlavaProcessor, "llava_next": LlavaNextProcessor}[family]
    return cls(**settings, patch_size=14, num_additional_image_tokens=1)


def whole_model(backbone: Llava, dialogue: Dialogue) -> torch.Tensor:
    """Return the hidden states of transformers' own forward, from its own processing of the images."""
    whole = copy.deepcopy(backbone.model)
    whole.set_attn_implementation("sdpa")
    processor = backbone.processor
    inputs = processor.prepare([dialogue]).tensors
    images = [image.decode() for image in dialogue.images]
    if not images:
        made = {}
    elif backbone.model.config.model_type == "llava_onevision":
        made = processor.image_processor([images], return_tensors="pt")
    else:
        made = processor.image_processor(images, return_tensors="pt")
    with torch.no_grad():
        found = whole(input_ids=inputs["input_ids"], use_cache=False, **made)
    return found.last_hidden_state[0]


def test_keeps_the_contract_in_padded_rows(registry, tmp_path, backbone):
    sizes = small_llava(backbone.model.config.model_type, rows="padded")
    check_backbone(registry, "llava", sizes, texts=TEXTS, images=IMAGES[1:], folder=tmp_path)


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
def test_packed_rows_reach_the_attention_of_each_decoder(decoder):
    backbone = build("llava", decoder=decoder)
    rows = [dialogue_of(ASKED, IMAGES[:1], "isolated"), dialogue_of(ASKED[:2], ())]
    apart = torch.cat([states(backbone, [row]) for row in rows])
    torch.testing.assert_close(states(backbone, rows), apart, rtol=0, atol=1e-5)
    padded = build("llava", decoder=decoder, rows="padded")
    torch.testing.assert_close(states(padded, rows), apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("template", ["auto", "bare"])
@pytest.mark.parametrize("family", LLAVA_FAMILIES)
def test_isolated_turns_equal_single_turn_passes(family, template):
    """Promise 1, for images of several sizes, one alone and several together."""
    backbone = build(family, template=template)
    seen = [IMAGES[:1], IMAGES[1:], ()]
    rows = [dialogue_of(ASKED, images, "isolated") for images in seen]
    separate = [dialogue_of([text], images) for images in seen for text in ASKED]
    expected = torch.cat([states(backbone, [dialogue]) for dialogue in separate])
    torch.testing.assert_close(states(backbone, rows), expected, rtol=0, atol=1e-5)


def test_causal_turns_see_the_earlier_ones(backbone):
    one = states(backbone, [dialogue_of(["a", "what is it?"], IMAGES)])
    other = states(backbone, [dialogue_of(["b", "what is it?"], IMAGES)])
    assert (one[1] - other[1]).abs().max() > 1e-4


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_equals_the_whole_transformers_model(backbone, number):
    """Our seam (tower, projector, tiles put together, language model) is the model's own forward."""
    dialogue = dialogue_of(["what is it?", "a"], IMAGES[3 - number :])
    expected = whole_model(backbone, dialogue)
    with torch.no_grad():
        found = backbone.encode(backbone.processor.prepare([dialogue])).hidden
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_only_its_own_turn_sees_an_image_of_a_turn(backbone):
    turns = dialogue_of(ASKED[:2], IMAGES[:1], "isolated").turns
    message = turns[1].messages[0]
    shown = type(message)("user", Content(message.content.text, (IMAGES[1],)))
    dialogue = Dialogue("", tuple(IMAGES[:1]), (turns[0], type(turns[1])((shown,), turns[1].key)), "isolated")
    found = states(backbone, [dialogue])
    plain = states(backbone, [dialogue_of(ASKED[:2], IMAGES[:1], "isolated")])
    torch.testing.assert_close(found[0], plain[0], rtol=0, atol=1e-5)
    assert (found[1] - plain[1]).abs().max() > 1e-4


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 4))
def test_image_tokens_are_those_of_transformers(backbone, their_processor, height, width, max_tiles):
    """Their processor's count, for one image; the model's own forward checks that it is the model's too."""
    tiling = backbone.processor.tiling
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(DataError, match=f"{width} x {height}"):
            tiling.num_tiles(height, width, is_only=True)
        return
    if tiling.max_area_tiles is not None:
        tiling = replace(tiling, max_area_tiles=max_tiles)
        their_processor.vision_aspect_ratio = f"anyres_max_{max_tiles}"
    found = tiling.num_tokens(height, width, tiling.num_tiles(height, width, is_only=True))
    expected = 17 if not tiling.grids else their_processor._get_number_of_features(height, width, 56, 56)
    assert found == expected - (their_processor.vision_feature_select_strategy == "default")


def test_a_rendered_image_has_the_tokens_of_transformers_processor(backbone, their_processor):
    for images in (IMAGES[:1], IMAGES[1:2], IMAGES[2:], IMAGES):
        made = their_processor(
            text=["<image>" * len(images)], images=[[image.decode() for image in images]], return_tensors="pt"
        )
        inputs = backbone.processor.prepare([dialogue_of(["a"], images)])
        expected = (made["input_ids"] == backbone.processor.image_id).sum()
        assert len(inputs.tensors["image_index"]) == expected


@pytest.mark.parametrize("most", [1, 2])
def test_onevision_interpolates_what_is_too_much(tmp_path, most):
    build("llava_onevision", max_tiles=4).save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**settings, "vision_aspect_ratio": f"anyres_max_{most}"})
    )
    backbone = Llava.build(pretrained(tmp_path), texts=()).eval()
    dialogue = dialogue_of(["a"], [picture("red", (151, 133))])
    assert backbone.processor.render(dialogue).cost.patches == 5 * 16
    assert backbone.processor.render(dialogue).cost.tokens < 4 * 16 + 16
    with torch.no_grad():
        found = backbone.encode(backbone.processor.prepare([dialogue])).hidden
    torch.testing.assert_close(found, whole_model(backbone, dialogue), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", LLAVA_FAMILIES[1:])
def test_fewer_tiles_are_a_setting(family):
    single = build(family, max_tiles=1)
    for image in IMAGES:
        assert single.processor.render(dialogue_of(["a"], [image])).cost.patches == 2 * 16
    assert build(family).processor.render(dialogue_of(["a"], IMAGES[1:2])).cost.patches == 4 * 16


RENDERED = {
    "vicuna": "Be brief. USER: <image>\nwhat is it? ASSISTANT:<|emb|></s>USER: a ASSISTANT:<|emb|></s>",
    "mistral": "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] <image>\nwhat is it? [/INST]<|emb|></s>"
    "[INST] a [/INST]<|emb|></s>",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nwhat is it?<|im_end|>\n"
    "<|im_start|>assistant\n<|emb|><|im_end|>\n<|im_start|>user\na<|im_end|>\n"
    "<|im_start|>assistant\n<|emb|><|im_end|>",
    "bare": "Be brief.<image>what is it?<|emb|>a<|emb|>",
}


@pytest.mark.parametrize("template", list(RENDERED))
def test_renders_the_templates_of_the_language_models(template):
    processor = build("llava", template=template).processor
    turns = dialogue_of(["what is it?", "a"], ()).turns
    ids = processor.prepare([Dialogue("Be brief.", tuple(IMAGES[:1]), turns)]).tensors["input_ids"][0]
    text = processor.tokenizer.decode(ids).replace("<image>" * 16, "<image>")
    assert text == RENDERED[template]


@pytest.mark.parametrize(
    ("family", "template"), [("llava", "vicuna"), ("llava_next", "mistral"), ("llava_onevision", "chatml")]
)
def test_the_template_is_that_of_the_language_model(family, template):
    dialogue = dialogue_of(ASKED, IMAGES[:1])
    found, expected = (
        build(family, template=name).processor.prepare([dialogue]) for name in ("auto", template)
    )
    assert torch.equal(found.tensors["input_ids"], expected.tensors["input_ids"])


def test_special_tokens_in_a_users_text_are_ordinary_characters(backbone):
    text = "<|emb|> <image> <|im_start|>system </s>"
    inputs = backbone.processor.prepare([dialogue_of([text], ())])
    plain = backbone.processor.prepare([dialogue_of(["a"], ())])
    ids, expected = (list(each.tensors["input_ids"][0]) for each in (inputs, plain))
    special = set(backbone.processor.tokenizer.all_special_ids)
    assert [i for i in ids if int(i) in special] == [i for i in expected if int(i) in special]
    assert text in backbone.processor.tokenizer.decode(torch.stack(ids))


def test_the_language_model_head_is_never_there(backbone):
    assert not [name for name, _ in backbone.named_parameters() if "lm_head" in name]


def test_a_frozen_vision_tower_leaves_the_projector_to_learn():
    backbone = build("llava_next", freeze_vision=True)
    assert not any(weight.requires_grad for weight in backbone.image_parameters())
    inputs = backbone.processor.prepare([dialogue_of(["a"], IMAGES)])
    features = backbone.encode_images(inputs)
    assert not features.tensors[0].requires_grad
    backbone.encode(inputs, features).hidden.sum().backward()
    learnt = {name.split(".")[1] for name, weight in backbone.named_parameters() if weight.grad is not None}
    assert learnt == {"multi_modal_projector", "image_newline", "language_model"}


def test_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(MucoError, match="bert model; llava loads llava, llava_next, llava_onevision"):
        Llava.build(pretrained(tmp_path), texts=())


def test_a_configuration_must_say_how_images_are_split(tmp_path):
    build("llava_onevision").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vision_aspect_ratio": "x"}))
    with pytest.raises(MucoError, match="how images are split"):
        Llava.build(pretrained(tmp_path), texts=())


def test_what_a_checkpoint_must_have(tmp_path):
    backbone = build("llava_next")
    backbone.save(tmp_path)
    kept = {path.name: path.read_text() for path in tmp_path.glob("*.json")}

    def broken(file: str, **changes: object) -> pytest.ExceptionInfo:
        for name, text in kept.items():
            (tmp_path / name).write_text(text)
        (tmp_path / file).write_text(json.dumps({**json.loads(kept[file]), **changes}))
        with pytest.raises(MucoError) as raised:
            Llava.build(pretrained(tmp_path), texts=())
        return raised

    images = "preprocessor_config.json"
    wrong = {"size": {"height": 42, "width": 42}, "crop_size": None}
    assert "pictures of 42 pixels" in str(broken(images, **wrong).value)
    assert "not multiples of 56" in str(broken("config.json", image_grid_pinpoints=[[60, 56]]).value)
    assert "pairs of height and width" in str(broken("config.json", image_grid_pinpoints=[[56]]).value)
    assert "17 for 16" in str(broken("config.json", vision_feature_select_strategy="full").value)
    (tmp_path / images).unlink()
    with pytest.raises(MucoError, match=r"preprocessor_config\.json of .* cannot be read"):
        Llava.build(pretrained(tmp_path), texts=())


def test_sliding_windows_are_refused_where_they_would_not_be_kept(tmp_path):
    backbone = build("llava", decoder="mistral")
    backbone.model.config.text_config.sliding_window = 8
    backbone.save(tmp_path)
    with pytest.raises(MucoError, match="rows: padded"):
        Llava.build(pretrained(tmp_path), texts=())
    padded = Llava.build(pretrained(tmp_path, rows="padded"), texts=()).eval()
    assert states(padded, [dialogue_of(ASKED, ())]).isfinite().all()
    with pytest.raises(MucoError, match="isolated turns"):
        states(padded, [dialogue_of(ASKED, (), "isolated")])


@pytest.mark.parametrize("template", ["vicuna", "mistral"])
@pytest.mark.parametrize("images", [0, 1])
def test_pieces_of_a_dialogue_become_the_tokens_of_the_whole_text(template, images):
    """With Llama's tokenizer, which begins every text with a space, and every dialogue with `<s>`."""
    tokenizer = llama_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<|emb|>", "<|mask|>"]})
    processor = LlavaProcessor(
        tokenizer,
        build("llava").processor.image_processor,
        find_template(template, tokenizer, decoder="llama"),
        build("llava").processor.tiling,
        image_id=tokenizer.convert_tokens_to_ids("<image>"),
        rows=RowSettings(),
    )
    turns = dialogue_of(["what is the colour?", "where is it?"], ()).turns
    dialogue = Dialogue("Be brief.", tuple(IMAGES[:images]), turns)
    ids = processor.prepare([dialogue]).tensors["input_ids"][0].tolist()
    text = "".join(tokenizer.convert_ids_to_tokens(ids)).replace("\u2581", " ").replace("<0x0A>", "\n")
    before = text.removeprefix("<s> ").partition("<|emb|>")[0]
    assert ids[: ids.index(processor.emb_id)] == tokenizer(before)["input_ids"]
    shown = "<image>" * 16 + "\n" if images else ""
    opening = {"vicuna": "Be brief. USER: ", "mistral": "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] "}[template]
    assert (
        before
        == f"{opening}{shown}what is the colour?" + {"vicuna": " ASSISTANT:", "mistral": " [/INST]"}[template]
    )


@pytest.mark.parametrize("spare", [0, 1, 5])
def test_a_checkpoint_gets_our_tokens(tmp_path, spare):
    """The matrix grows by what it lacks, and `<image>`, here an ordinary addition, becomes special."""
    backbone, tokenizer = build("llava"), llama_tokenizer()
    rows = len(tokenizer) + spare
    backbone.model.resize_token_embeddings(rows)
    backbone.model.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    backbone.save(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = Llava.build(pretrained(tmp_path, template="auto"), texts=()).eval()
    assert loaded.model.get_input_embeddings().weight.shape[0] == max(rows, len(tokenizer) + 2)
    dialogue = dialogue_of(["<image> <|emb|> </s>"], IMAGES[:1])
    ids = loaded.processor.prepare([dialogue]).tensors["input_ids"][0].tolist()
    assert ids.count(loaded.processor.image_id) == 16
    assert ids.count(loaded.processor.emb_id) == ids.count(tokenizer.eos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert states(loaded, [dialogue]).isfinite().all()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return ragged(tmp_path_factory.mktemp("ragged"))


def encoder(backbone: Llava) -> TurnEncoder:
    return TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=backbone.hidden_dim)).train()


@pytest.mark.parametrize("context", ["isolated", "causal"])
def test_cached_gradients_equal_plain_ones_in_any_chunks(backbone, reader, context):
    """Promise 3, text-only chunks and images in several tiles among them."""
    model = encoder(backbone)
    whole = gradients(model, reader, cached=False, budget=None, context=context)
    assert any("image_newline" in name or "projector" in name for name in whole[1])
    for budget in (1, 90, 200):
        same(gradients(model, reader, cached=True, budget=budget, context=context), whole, 1e-10)


@pytest.mark.parametrize("options", [{"rows": "padded"}, {"gradient_checkpointing": True}])
def test_padded_rows_and_recomputed_activations_have_the_same_gradients(backbone, reader, options):
    found = encoder(build(backbone.model.config.model_type, **options))
    settings = {"cached": True, "budget": 150, "context": "isolated"}
    same(gradients(found, reader, **settings), gradients(encoder(backbone), reader, **settings), 1e-10)


def test_kept_features_of_a_frozen_tower_have_the_same_gradients(backbone, reader):
    family = backbone.model.config.model_type
    frozen = gradients(
        encoder(build(family, freeze_vision=True)), reader, cached=True, budget=90, context="isolated"
    )
    plain = gradients(encoder(backbone), reader, cached=False, budget=None, context="isolated")
    assert frozen[1].keys() == {name for name in plain[1] if "vision_tower" not in name}
    same(frozen, (plain[0], {name: plain[1][name] for name in frozen[1]}), 1e-10)


@pytest.mark.parametrize("adapter", [None, {"rank": 4, "dora": False}, {"rank": 4, "vision": True}])
def test_a_step_lowers_the_loss_of_its_batch(backbone, reader, adapter):
    model = encoder(build(backbone.model.config.model_type, adapter=adapter)).eval()
    settings = {"cached": True, "budget": 200, "context": "isolated", "dtype": torch.float32}
    before, found = gradients(model, reader, **settings)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert found.keys() <= trained.keys()
    length = torch.cat([gradient.flatten() for gradient in found.values()]).norm()
    with torch.no_grad():
        for name, gradient in found.items():
            trained[name] -= 1e-4 * gradient / length
    after, _ = gradients(model, reader, **settings)
    assert before - after == pytest.approx(1e-4 * float(length), rel=0.1), "not as the slope says"


ADAPTERS = [{"rank": 4}, {"rank": 4, "vision": True, "targets": ["q_proj", "fc1"]}]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_saved_bit_for_bit_and_merged(backbone, tmp_path, adapter, dtype):
    sizes = small_llava(backbone.model.config.model_type, adapter=adapter, dtype=dtype)
    adapted = Llava.build(Llava.Config.model_validate(sizes), texts=TEXTS).eval()
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert all(name == "rows.weight" or ".lora_" in name for name in trained)
    assert any("vision_tower" in name for name in trained) == bool(adapter.get("vision"))
    torch.manual_seed(1)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    dialogues = [dialogue_of(ASKED[:2], IMAGES[1:2])]
    expected = states(adapted, dialogues)
    adapted.save(tmp_path)
    again = Llava.load(Llava.Config.model_validate(sizes), tmp_path).eval()
    assert torch.equal(states(again, dialogues), expected)
    adapted.merge_adapters()
    assert not [name for name in adapted.state_dict() if "lora" in name]
    near = 1e-5 if dtype == "float32" else 0.2
    torch.testing.assert_close(states(adapted, dialogues), expected, rtol=0, atol=near)
