from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from muco.config.load import load_recipe
from muco.core import Content, DataError, EncodedImage, Message, MucoError, RecipeError
from muco.core.dialogue import Dialogue, Turn
from muco.plugins.backbones.clip import Clip
from muco.plugins.poolers.last_token import LastToken
from muco.plugins.poolers.mean import Mean
from muco.plugins.poolers.turn_token import TurnToken
from muco.testing import check_backbone, dialogue_of, states
from tests.helpers.clip import DIALOGUES, IMAGES, build, pretrained, trained
from tests.helpers.small import SMALL_CLIP, TEXTS, picture
from tests.helpers.towers import TEXT, VISION, towers_of

LONG = "where is it? " * 20

TOWERS = {
    "openai": (VISION, TEXT),
    "both ways": (VISION, {**TEXT, "no_causal_mask": True, "pool_type": "last", "context_length": 16}),
    "resnet": ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}, TEXT),
    "timm": ({"image_size": 160, "timm_model_name": "test_vit", "timm_proj": "linear"}, TEXT),
}


# The contract

EMBEDDING_64 = {"random_init": {**SMALL_CLIP["random_init"], "embedding_dim": 64}}
"""As the features of timm's `test_vit` and `test_convnext`."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fusion": "learned_sum", "image_weight": 0.3},
        {"fusion": "mlp"},
        {"image_tower": {"name": "test_vit"}},
        {"image_tower": {"name": "test_resnet"}, "fusion": "mlp", "freeze_vision": True},
        {"adapter": {"rank": 4}, "image_tower": {"name": "test_resnet"}, "fusion": "mlp"},
        {"image_tower": {"name": "test_vit", "projection": "none"}, **EMBEDDING_64},
        {"adapter": {"rank": 4, "vision": True}},
    ],
    ids=str,
)
def test_keeps_the_contract(registry, tmp_path, changes):
    check_backbone(registry, "clip", {**SMALL_CLIP, **changes}, texts=TEXTS, images=IMAGES, folder=tmp_path)


@pytest.mark.parametrize("kind", TOWERS)
def test_checkpoints_of_open_clip_keep_it_too(registry, tmp_path, kind):
    folder = towers_of(*TOWERS[kind], tmp_path / "checkpoint")
    check_backbone(
        registry, "clip", {"pretrained": str(folder)}, texts=(), images=IMAGES, folder=tmp_path / "saved"
    )


@settings(max_examples=25)
@given(
    questions=st.lists(
        st.sampled_from(["a", "what is it?", "red", "where is the circle?"]), min_size=1, max_size=5
    ),
    num_images=st.integers(0, 2),
)
def test_isolated_turns_equal_single_turn_passes(mlp, questions, num_images):
    images = IMAGES[:num_images]
    together = states(mlp, [dialogue_of(questions, images, "isolated"), dialogue_of(["b"], IMAGES[:1])])
    separate = torch.cat([states(mlp, [dialogue_of([text], images)]) for text in questions])
    torch.testing.assert_close(together[:-1], separate, rtol=0, atol=1e-5)


def test_all_poolers_give_the_same(mlp):
    found = mlp.encode(mlp.processor.prepare([dialogue_of(["a", "red"], IMAGES, "isolated")]))
    vectors = [cls(cls.Config(), hidden_dim=32)(found).vectors for cls in (TurnToken, LastToken, Mean)]
    torch.testing.assert_close(vectors[1], vectors[0])
    torch.testing.assert_close(vectors[2], vectors[0])


# What is encoded


@pytest.mark.parametrize("kind", TOWERS)
def test_a_text_and_an_image_alone_are_open_clips_own(tmp_path, kind):
    """Against the library's whole path: its model, its tokenizer, its transform, padding included."""
    folder = towers_of(*TOWERS[kind], tmp_path)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    texts = ["a photo of a cat", "Two  dogs &amp; a ball, running"]
    backbone = pretrained(folder)
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
        text = model.eval().encode_text(tokens, normalize=True)
        image = model.encode_image(transform(IMAGES[1].decode())[None], normalize=True)
    found = states(backbone, [dialogue_of([text], ()) for text in texts] + [dialogue_of([""], IMAGES[1:])])
    torch.testing.assert_close(found, torch.cat((text, image)), rtol=0, atol=1e-5)


def test_a_saved_folder_is_one_of_open_clip(backbone, saved):
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{saved}")
    tokens = open_clip.get_tokenizer(f"local-dir:{saved}")(["a red circle", "where?"])
    with torch.no_grad():
        expected = model.eval().encode_text(tokens, normalize=True)
    found = states(backbone, [dialogue_of(["a red circle"], ()), dialogue_of(["where?"], ())])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_image_and_text_are_joined_by_the_weighted_sum_of_unit_vectors():
    text, image = (
        states(build(), [dialogue]) for dialogue in (dialogue_of(["a"], ()), dialogue_of([""], IMAGES))
    )
    one, other = (states(build(), [dialogue_of([""], [image])]) for image in IMAGES)
    torch.testing.assert_close(image, torch.nn.functional.normalize(one + other))
    for fusion in ("sum", "learned_sum", "mlp"):
        joined = states(build(fusion=fusion, image_weight=0.3), [dialogue_of(["a"], IMAGES)])
        torch.testing.assert_close(joined, 0.3 * image + 0.7 * text)


def test_images_of_the_turn_and_of_the_dialogue_count_alike(backbone):
    key = dialogue_of(["a"], ()).turns[0].key
    own = Turn((Message("user", Content("a", (IMAGES[1],))),), key)
    found = states(backbone, [Dialogue("", (IMAGES[0],), (own,)), dialogue_of(["a"], IMAGES)])
    torch.testing.assert_close(found[0], found[1])


def test_the_system_text_is_left_out(backbone):
    plain = dialogue_of(["a"], IMAGES)
    with_system = Dialogue("You are a helpful assistant.", plain.images, plain.turns)
    assert torch.equal(states(backbone, [plain]), states(backbone, [with_system]))


def test_each_distinct_image_and_text_is_encoded_once(backbone):
    seen: dict[str, list[int]] = {"visual": [], "text": []}
    hooks = [
        getattr(backbone.model, name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(len(args[0]))
        )
        for name in seen
    ]
    again = EncodedImage(bytes(IMAGES[0].data))
    dialogues = [
        dialogue_of(["a", "red", "where?"], IMAGES[:1], "isolated"),
        dialogue_of(["a", "red", "blue"], [again], "isolated"),
        dialogue_of([""], IMAGES[1:]),
    ]
    inputs = backbone.processor.prepare(dialogues)
    backbone.encode(inputs)
    for hook in hooks:
        hook.remove()
    assert seen == {"visual": [2], "text": [4]}
    assert inputs.num_patches == 2 * 16


def test_special_tokens_in_a_users_text_are_ordinary_characters(backbone, tmp_path):
    ids = backbone.processor.texts.rows(["<end_of_text> a <pad>"])[0].tolist()
    assert ids[0] == 1
    assert ids[-1] == 2
    assert not {0, 1, 2} & set(ids[1:-1])
    clip = pretrained(towers_of(VISION, TEXT, tmp_path))
    for text in ("<end_of_text> cat", "&lt;END_of_text&gt; cat", "<start_of_text>"):
        ids = clip.processor.texts.rows([text])[0].tolist()
        assert ids[0] == 49406
        assert ids[-1] == 49407
        assert not {49406, 49407} & set(ids[1:-1]), text


# Texts beyond the context, images beyond all bounds


def test_a_text_beyond_the_context_is_an_error_that_says_what_to_do(backbone, tmp_path):
    clip = pretrained(towers_of(VISION, TEXT, tmp_path))
    for each, limit in ((backbone, 48), (clip, 77)):
        for call in (each.processor.render, lambda dialogue, each=each: each.processor.prepare([dialogue])):
            with pytest.raises(DataError, match=rf"takes {limit}\..*`backbone.truncate: true`"):
                call(dialogue_of([LONG], ()))


def test_a_text_beyond_the_context_is_cut_and_counted_where_that_is_asked_for(tmp_path):
    folder = towers_of(VISION, TEXT, tmp_path)
    for backbone, name in (
        (build(truncate=True), None),
        (pretrained(folder, truncate=True), f"local-dir:{folder}"),
    ):
        texts = backbone.processor.texts
        inputs = backbone.processor.prepare([dialogue_of([LONG, "a", LONG], IMAGES, "isolated")])
        assert inputs.num_cut_texts == 2
        ids = texts.rows([LONG])
        assert ids.shape == (1, texts.tokenizer.context_length)
        if name:
            assert torch.equal(ids, open_clip.get_tokenizer(name)([LONG]))
        else:
            assert ids[0, -1] == 2
        assert backbone.processor.prepare([dialogue_of(["a"], ())]).num_cut_texts == 0


def test_images_that_cannot_be_read_are_named(backbone):
    for image, message in (
        (EncodedImage(b"no image"), "image"),
        (EncodedImage(IMAGES[0].data[:40]), "image"),
        (picture("red", (2, 600)), "2 x 600 pixels"),
    ):
        with pytest.raises(DataError, match=message):
            backbone.processor.prepare([dialogue_of(["a"], [image])])


def test_an_empty_turn_is_encoded_as_the_empty_text(backbone):
    inputs = backbone.processor.prepare([dialogue_of([" \n"], ()), dialogue_of(["a"], ())])
    assert inputs.tensors["text_turn"].tolist() == [0, 1]
    assert torch.equal(inputs.tensors["input_ids"], backbone.processor.texts.rows(["", "a"]))
    with torch.no_grad():
        hidden = backbone.eval().encode(inputs).hidden
    assert hidden.isfinite().all()
    assert not torch.equal(hidden[0], hidden[1])


# What it cannot do


@pytest.mark.parametrize(
    ("given", "works"),
    [
        ([], "`packer.context: isolated`"),
        (["packer.targets=dialogue"], "`packer.context: isolated` with `packer.targets: independent`"),
    ],
)
def test_causal_turns_are_refused_with_the_setting_that_works(given, works):
    overrides = [
        "backbone={name: clip, random_init: {}}",
        "packer.context=causal",
        "loss.duplicates=mask",
        *given,
    ]
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", overrides)
    assert "needs causal_context" in str(caught.value)
    assert str(caught.value).endswith(f"What works: {works}")


def test_causal_turns_that_reach_it_are_a_bug(backbone):
    with pytest.raises(ValueError, match="isolated"):
        backbone.processor.prepare([dialogue_of(["a", "b"], IMAGES)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random_init": None}, "either `pretrained` or `random_init`"),
        ({"pretrained": "x"}, "either `pretrained` or `random_init`"),
        (
            {"random_init": None, "pretrained": "x", "image_tower": {"name": "test_vit"}},
            "image_tower.pretrained",
        ),
        ({"random_init": {"text_dim": 30}}, "text_dim 30 must be a multiple of text_heads 4"),
        ({"image_weight": 1.0}, "less than 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Clip.Config.model_validate({**SMALL_CLIP, **changes})


# Loading


def test_missing_and_unexpected_weights_are_errors(saved):
    file = saved / "open_clip_model.safetensors"
    weights = load_file(file)
    weights["stray"] = weights.pop("text.ln_final.weight")
    weights["visual.ln_post.bias"] = torch.zeros(3)
    save_file(weights, file)
    with pytest.raises(DataError, match=r"missing: text\.ln_final.*unexpected: stray; of another.*ln_post"):
        pretrained(saved)


def test_missing_fusion_weights_are_an_error(saved):
    with pytest.raises(DataError, match=r"missing: down\.bias"):
        Clip.load(Clip.Config.model_validate({**SMALL_CLIP, "fusion": "mlp"}), saved)


def test_the_scale_of_clips_own_loss_may_be_missing(saved, backbone):
    file = saved / "open_clip_model.safetensors"
    weights = load_file(file)
    del weights["logit_scale"]
    weights["attn_mask"] = torch.zeros(1)
    save_file(weights, file)
    dialogue = dialogue_of(["a"], IMAGES)
    assert torch.equal(states(pretrained(saved), [dialogue]), states(backbone, [dialogue]))


def change(folder: Path, **values: Any) -> None:
    file = folder / "open_clip_config.json"
    described = json.loads(file.read_text())
    for path, value in values.items():
        *parents, last = path.split("__")
        node = described
        for parent in parents:
            node = node[parent]
        node[last] = value
    file.write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preprocess_cfg": {"mean": [0, 0, 0]}}, "mean and std"),
        ({"preprocess_cfg": None}, "mean and std"),
        ({"preprocess_cfg__interpolation": "x"}, "preprocess_cfg of open_clip_config.json"),
        ({"model_cfg": "ViT-B-32"}, "must hold model_cfg"),
        ({"model_cfg__text_cfg": None}, "must be objects"),
        ({"model_cfg__multimodal_cfg": {}}, "CoCa"),
        ({"model_cfg__text_cfg__hf_model_name": "roberta-base"}, "text tower of transformers"),
        ({"model_cfg__text_cfg__tokenizer_mode": "clips"}, "tokenizer mode 'clips'"),
        ({"model_cfg__text_cfg__tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"model_cfg__vision_cfg__wings": 2}, "does not describe a model of open_clip: .*wings"),
        (
            {"model_cfg__vision_cfg__timm_model_name": "no_such_tower"},
            "does not describe a model of open_clip",
        ),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_supported_is_named(saved, values, message):
    change(saved, **values)
    with pytest.raises(MucoError, match=message):
        pretrained(saved)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("open_clip_config.json", "open_clip_config.json cannot be read"),
        ("open_clip_model.safetensors", "has no open_clip_model.safetensors or"),
        ("tokenizer.json", "its tokenizer cannot be loaded"),
        ("", "is not a folder"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_named(saved, gone, message):
    shutil.rmtree(saved) if not gone else (saved / gone).unlink()
    with pytest.raises(MucoError, match=message):
        pretrained(saved)


@pytest.mark.parametrize("name", ["hf-hub:nobody/nothing", "hf-hub:../.."])
def test_a_hub_name_that_cannot_be_had_is_named(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MucoError, match=r"backbone\.pretrained: hf-hub:.* cannot be loaded"):
        build(random_init=None, pretrained=name)


# A timm tower


@pytest.fixture
def timm_folder(tmp_path) -> Path:
    """A classifier of timm in its own layout."""
    folder = tmp_path / "timm"
    folder.mkdir()
    torch.manual_seed(2)
    model = timm.create_model("test_vit")
    save_file(model.state_dict(), folder / "model.safetensors")
    about = {"input_size": [3, 160, 160], "mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
    (folder / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": about}))
    return folder


def test_a_timm_tower_brings_its_weights_and_its_normalisation(saved, timm_folder, tmp_path):
    tower = {"name": "test_vit", "pretrained": str(timm_folder)}
    backbone = pretrained(saved, image_tower=tower, freeze_vision=True)
    trunk = load_file(timm_folder / "model.safetensors")
    own = backbone.model.visual.trunk.state_dict()
    assert own.keys() == {name for name in trunk if not name.startswith("head.")}
    assert all(torch.equal(own[name], trunk[name]) for name in own)
    pixels = backbone.processor.prepare([dialogue_of([""], [picture("red", (90, 70))])]).tensors[
        "pixel_values"
    ]
    assert pixels.shape == (1, 3, 160, 160)
    assert pixels.max() == pytest.approx((1 - 0.1) / 0.2)
    trained = {name for name, weight in backbone.model.visual.named_parameters() if weight.requires_grad}
    assert trained == {"head.proj.weight"}
    backbone.save(tmp_path / "again")
    again = Clip.load(backbone.config, tmp_path / "again").eval()
    dialogue = dialogue_of(["a"], IMAGES)
    assert torch.equal(states(again, [dialogue]), states(backbone, [dialogue]))


def test_a_timm_tower_that_does_not_fit_is_named(saved, timm_folder):
    tower = {"name": "test_vit", "pretrained": str(timm_folder)}
    with pytest.raises(DataError, match=r"missing: .*unexpected: "):
        pretrained(saved, image_tower={**tower, "name": "test_convnext"})
    with pytest.raises(MucoError, match="cannot build 'no_such_tower'"):
        pretrained(saved, image_tower={**tower, "name": "no_such_tower"})
    (timm_folder / "config.json").unlink()
    with pytest.raises(MucoError, match=r"config\.json cannot be read"):
        pretrained(saved, image_tower=tower)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_without_a_projection_the_embedding_is_what_the_tower_pools(tmp_path, name):
    backbone = build(image_tower={"name": name, "projection": "none"}, **EMBEDDING_64, freeze_vision=True)
    pixels = backbone.processor.prepare([dialogue_of([""], IMAGES[:1])]).tensors["pixel_values"]
    tower = timm.create_model(name, num_classes=0).eval()
    tower.load_state_dict(backbone.model.visual.trunk.state_dict())
    expected = torch.nn.functional.normalize(tower(pixels))
    assert not any(each.startswith("model.visual") for each in trained(backbone))
    backbone.save(tmp_path / "saved")
    for each in (backbone, Clip.load(backbone.config, tmp_path / "saved").eval()):
        found = states(each, [dialogue_of([""], IMAGES[:1])])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_tower_of_another_size_needs_a_projection():
    with pytest.raises(MucoError, match=r"projection: none: .* 96 features.*embedding_dim: 96"):
        build(image_tower={"name": "test_resnet", "projection": "none"}, **EMBEDDING_64)


def test_an_embedding_in_training_does_not_depend_on_its_neighbours():
    """Batch norms keep their statistics."""
    backbone = build(image_tower={"name": "test_resnet"}).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    apart = torch.cat([states(backbone, [dialogue_of(["a"], [image])]) for image in IMAGES])
    together = states(backbone, [dialogue_of(["a"], [image]) for image in IMAGES])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_fusion_is_started_from_and_not_made_anew(mlp, tmp_path):
    mlp.save(tmp_path)
    found = pretrained(tmp_path, fusion="mlp")
    assert torch.equal(states(found, DIALOGUES), states(mlp, DIALOGUES))
    with pytest.raises(DataError, match=r"fusion\.safetensors: not made by `fusion: sum`.*unexpected"):
        pretrained(tmp_path)
    with pytest.raises(DataError, match=r"not made by `fusion: mlp` of these settings\. of another shape"):
        pretrained(tmp_path, fusion="mlp", fusion_dim=3)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "fusion.safetensors"])
def test_weights_that_are_broken_are_named(mlp, tmp_path, file):
    mlp.save(tmp_path)
    (tmp_path / file).write_bytes(b"no weights")
    with pytest.raises(DataError, match=f"{file}: it cannot be read"):
        pretrained(tmp_path, fusion="mlp")


def test_cut_texts_are_counted_chunk_by_chunk():
    backbone = build(truncate=True)
    dialogues = [dialogue_of([LONG], IMAGES), dialogue_of(["a"], ()), dialogue_of([LONG], ())]
    chunks = [backbone.processor.prepare(part) for part in (dialogues[:2], dialogues[2:])]
    assert [chunk.num_cut_texts for chunk in chunks] == [1, 1]
