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
from muco.core import (
    Content,
    DataError,
    EncodedImage,
    Message,
    MucoError,
    Pair,
    RecipeError,
    Sample,
    TurnEncoder,
)
from muco.core.dialogue import Dialogue, Turn
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.plugins.backbones.clip import Clip
from muco.plugins.backbones.clip.lora_attention import OpenAttention
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.packers.single_turn import SingleTurn
from muco.plugins.poolers.last_token import LastToken
from muco.plugins.poolers.mean import Mean
from muco.plugins.poolers.turn_token import TurnToken
from muco.plugins.samplers.mixture import Mixture
from muco.testing import check_backbone, dialogue_of, states
from muco.training.batches import StepBatches
from muco.training.step import Stepper
from tests.helpers.small import SMALL_CLIP, TEXTS, picture
from tests.helpers.towers import TEXT, VISION, towers_of

IMAGES = [picture("red", (56, 56)), picture("blue", (80, 40))]
LONG = "where is it? " * 20


def build(**changes: Any) -> Clip:
    torch.manual_seed(0)
    return Clip.build(Clip.Config.model_validate({**SMALL_CLIP, **changes}), texts=TEXTS).eval()


@pytest.fixture(scope="module")
def backbone() -> Clip:
    return build()


@pytest.fixture(scope="module")
def mlp() -> Clip:
    """A fusion that adds something."""
    backbone = build(fusion="mlp")
    torch.nn.init.normal_(backbone.fusion.down.weight, std=0.1)
    return backbone


@pytest.fixture
def saved(backbone, tmp_path) -> Path:
    backbone.save(tmp_path / "saved")
    return tmp_path / "saved"


def pretrained(folder: Path, **changes: Any) -> Clip:
    return build(random_init=None, pretrained=str(folder), **changes)


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


# Training


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> ShardReader:
    """Samples of one to four turns, with and without image, some with hard negatives."""
    samples = []
    for number in range(7):
        pairs = tuple(
            Pair(
                f"task{turn}",
                (Content(f"what {number} {turn}"),),
                Content(f"a {number} {turn}", (picture("green", (40 + number, 40)),) if turn == 2 else ()),
                (Content(f"not {number}", IMAGES[1:]),) if number == 2 and turn == 0 else (),
            )
            for turn in range(1 + number % 4)
        )
        images = (picture("red", (56 + 28 * (number % 3), 56)),) if number % 3 else ()
        samples.append(Sample(f"{number}", "ragged", images, pairs))
    folder = tmp_path_factory.mktemp("ragged")
    write_shards(samples, folder, metadata={})
    return ShardReader(folder)


def stepper(reader, *, cached=False, budget=None, dtype=torch.float64, packer=None, **changes):
    """Return the encoder, and what puts the gradients of step 0 on it."""
    backbone = build(fusion="mlp", **changes).to(dtype)
    torch.nn.init.normal_(backbone.fusion.down.weight, std=0.1)
    if changes.get("adapter"):
        moved(backbone)
    encoder = TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=32)).train()
    batches = StepBatches(
        readers={"ragged": reader},
        sampler=Mixture(Mixture.Config()),
        packer=packer or MultiTurn(MultiTurn.Config(context="isolated", system="")),
        processor=backbone.processor,
        global_batch_size=7,
        seed=0,
        chunk_tokens=budget,
    )
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1, duplicates="mask"))
    step = Stepper(encoder, loss, torch.device("cpu"), grad_cache=cached)
    return encoder, lambda: step(batches[0])


def gradients(reader, **settings):
    encoder, step = stepper(reader, **settings)
    return step().mean, {n: w.grad for n, w in encoder.named_parameters() if w.grad is not None}


def same(found, expected, tolerance):
    """Agree, as a share of a weight's greatest gradient: small embeddings have large ones."""
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        greatest = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=tolerance * greatest, msg=name)


@pytest.mark.parametrize("tower", [{}, {"image_tower": {"name": "test_resnet"}}], ids=["vit", "timm"])
@pytest.mark.parametrize("frozen", [False, True])
def test_cached_gradients_in_any_chunks_equal_those_of_the_whole_batch(reader, tower, frozen):
    settings = {**tower, "freeze_vision": frozen}
    whole = gradients(reader, **settings)
    for cached in (False, True):
        for budget in (20, 90):
            same(gradients(reader, cached=cached, budget=budget, **settings), whole, 1e-10)


def kept_bytes(step) -> int:
    """Return the size of what is kept for the way back."""
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept)


@pytest.mark.parametrize("tower", [{}, {"image_tower": {"name": "test_vit"}}], ids=["vit", "timm"])
@pytest.mark.parametrize("adapter", [None, {"vision": True, "dropout": 0.0}], ids=["whole", "adapters"])
def test_activations_computed_again_give_the_same_gradients_of_less_memory(reader, tower, adapter):
    settings = {**tower, "adapter": adapter}
    same(gradients(reader, **settings, gradient_checkpointing=True), gradients(reader, **settings), 1e-10)
    less, more = (
        kept_bytes(stepper(reader, **settings, cached=False, gradient_checkpointing=each)[1])
        for each in (True, False)
    )
    assert less < 0.95 * more


def test_a_tower_that_keeps_its_activations_is_reported():
    with pytest.raises(MucoError, match=r"gradient_checkpointing: .*freeze_vision: true"):
        build(image_tower={"name": "darknet17"}, gradient_checkpointing=True)


def test_float32_agrees_to_1e_5(reader):
    whole = gradients(reader, dtype=torch.float32)
    same(gradients(reader, cached=True, budget=40, dtype=torch.float32), whole, 1e-5)


def test_multi_turn_has_the_gradients_of_all_pairs_one_by_one(reader):
    """Isolated turns are single turns, so their batch is that of `single_turn` with `turns: all`."""
    one_by_one = SingleTurn(SingleTurn.Config(turns="all", system=""))
    same(gradients(reader, packer=one_by_one), gradients(reader), 1e-10)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_a_frozen_tower_gets_no_gradient(reader, part):
    trained = gradients(reader, **{f"freeze_{part}": True})[1]
    tower = {"vision": "model.visual", "text": "model.text"}[part]
    assert not any(tower in name for name in trained)
    assert any("fusion" in name for name in trained)
    assert any(name.startswith("backbone.model.") for name in trained)


@pytest.mark.parametrize("fusion", ["sum", "learned_sum", "mlp"])
@pytest.mark.parametrize("tower", [{}, {"image_tower": {"name": "test_convnext"}}], ids=["vit", "timm"])
def test_steps_on_one_batch_lower_its_loss(reader, tower, fusion):
    encoder, step = stepper(reader, dtype=torch.float32, **tower)
    if fusion != "mlp":
        encoder.backbone = build(fusion=fusion, **tower).train()
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    first = step().mean
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad()
        last = step().mean
    assert last < first - 0.05


def test_cut_texts_are_counted_chunk_by_chunk():
    backbone = build(truncate=True)
    dialogues = [dialogue_of([LONG], IMAGES), dialogue_of(["a"], ()), dialogue_of([LONG], ())]
    chunks = [backbone.processor.prepare(part) for part in (dialogues[:2], dialogues[2:])]
    assert [chunk.num_cut_texts for chunk in chunks] == [1, 1]


# Adapters


ADAPTERS = [
    {"rank": 4},
    {"rank": 4, "dora": False, "vision": True},
    {"rank": 4, "vision": True, "targets": ["in_proj", "c_fc"]},
]
DIALOGUES = [dialogue_of(["what is it?"], IMAGES[:1]), dialogue_of(["red"], ()), dialogue_of([""], IMAGES)]
TIMM = {"image_tower": {"name": "test_vit"}}


def moved(backbone: Clip) -> Clip:
    """Change every trained weight, as training would."""
    torch.manual_seed(1)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    return backbone


def trained(backbone: Clip) -> set[str]:
    return {name for name, weight in backbone.named_parameters() if weight.requires_grad}


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
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    first = step().mean
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad()
        last = step().mean
    assert last < first - 0.02
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
