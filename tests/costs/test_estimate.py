from __future__ import annotations

from random import Random

import pytest

from muco.config.load import load_recipe
from muco.core import Content, MucoError
from muco.core.component_ref import ComponentRef
from muco.costs.assumptions import Assumptions, assumed_sides, read_assumptions
from muco.costs.estimate import estimate, known_layers
from muco.costs.tables import peak_flops, public_model
from tests.helpers.backbones import BACKBONES, REGISTRY
from tests.helpers.small import TEXTS, picture


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "clip"])
def test_the_lengths_of_an_image_of_any_size_are_those_of_its_chunk(name: str):
    kind, small = BACKBONES[name]
    cls = REGISTRY.component("backbone", kind)
    config = cls.Config.model_validate(small)
    processor = cls.build(config, texts=TEXTS).processor
    layers = cls.layers_of(config, cls.sizes_of(config))
    packer = REGISTRY.component("packer", "multi_turn")
    context = {"context": "isolated", "system": "", "order": "fixed"}
    packer = packer(packer.Config.model_validate(context))
    rng = Random(0)
    for _ in range(6):
        size = rng.randint(8, 500), rng.randint(8, 500)
        assumed = Assumptions(images=1, turns=3, image_width=size[0], image_height=size[1])
        shapes = assumed_sides(packer, assumed)[0].dialogues
        expected = layers.lengths_for(shapes)
        prepared = processor.prepare([packer.inference(Content("a", (picture("red", size),)))])
        actual = layers.lengths_of(prepared)
        expected, actual = (
            {key: list(value) for key, value in lengths.of.items() if key != "tokens"}
            for lengths in (expected, actual)
        )
        assert expected == actual


def backbone(name: str, **settings: object) -> ComponentRef:
    cls = REGISTRY.component("backbone", name)
    return ComponentRef("backbone", name, cls.Config.model_validate(settings), cls)


def test_isolated_turns_see_the_prefix_and_themselves():
    cls = REGISTRY.component("packer", "multi_turn")
    layers = known_layers(backbone("qwen_vl", **BACKBONES["qwen2_vl"][1])).layers
    assumed = Assumptions(images=1, turns=2, image_width=56, image_height=56, query_words=3, turn_tokens=0)
    pairs = {}
    for context in ("isolated", "causal"):
        packer = cls(cls.Config.model_validate({"context": context, "system": ""}))
        lengths = layers.lengths_for(assumed_sides(packer, assumed)[0].dialogues)
        assert lengths.of["tokens"] == [4 + 3 + 3]
        pairs[context] = lengths.visible_pairs["tokens"]
    assert pairs == {"isolated": 10 + 2 * (3 * 4 + 6), "causal": 55}


@pytest.mark.parametrize("text", ["turn=7", "turns", "turns=no", "turns=0", "images=[", "turns: 7"])
def test_an_assumption_that_is_not_one_is_refused(text: str):
    with pytest.raises(MucoError, match="--assume"):
        read_assumptions([text], 4)


def test_a_model_that_is_neither_here_nor_in_the_table_is_an_error():
    with pytest.raises(MucoError, match="are not known"):
        known_layers(backbone("qwen_vl", pretrained="someone/something"))


def test_a_folder_comes_before_the_table(tmp_path, monkeypatch):
    cls = REGISTRY.component("backbone", "qwen_vl")
    config = cls.Config.model_validate(BACKBONES["qwen2_vl"][1])
    cls.build(config, texts=TEXTS).save(tmp_path / "Qwen/Qwen2-VL-2B-Instruct")
    monkeypatch.chdir(tmp_path)
    layers = known_layers(backbone("qwen_vl", pretrained="Qwen/Qwen2-VL-2B-Instruct")).layers
    assert layers.hidden_dim == 32


def test_the_towers_of_timm_are_unknown():
    settings = {**BACKBONES["clip"][1], "image_tower": {"name": "resnet18"}}
    with pytest.raises(MucoError, match="does not say"):
        known_layers(backbone("clip", **settings))


def test_each_shipped_recipe_is_counted_in_integers():
    for name in ("m3t_qwen", "mmeb_llava", "mmeb_clip", "quickstart", "pairs"):
        step = estimate(load_recipe(name, []), Assumptions(images=2)).step
        assert isinstance(step.hardware, int)
        assert 0 < step.unmasked <= step.model <= step.hardware


@pytest.mark.parametrize(
    ("train", "twice"),
    [
        (["chunk_tokens=32768"], set()),  # 4,232 patches of queries, fewer tokens, and fewer of targets
        (["chunk_tokens=32768", "gather_weights=layer"], {"language model"}),
        (["chunk_tokens=4232"], {"language model"}),
        (["chunk_tokens=2200"], {"vision tower", "projector", "language model"}),
        (["chunk_tokens=2200", "held_tokens=16000"], set()),
        (["chunk_tokens=4232", "held_tokens=auto"], {"language model"}),
        (["chunk_tokens=auto"], {"vision tower", "projector", "language model"}),
        (["chunk_tokens=2200", "grad_cache=false"], set()),
    ],
)
def test_chunks_beyond_the_limit_are_encoded_twice(train: list[str], twice: set[str]):
    settings = ["backbone.adapter=null", "backbone.freeze_vision=false", *(f"train.{each}" for each in train)]
    step = estimate(load_recipe("m3t_qwen", settings), Assumptions(images=2)).step
    assert {part for part, flops in step.twice.items() if flops} == twice


def test_tables_have_sources_and_no_default():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.5e12
    assert peak_flops("a device of tomorrow") is None
    model = public_model("Qwen/Qwen2-VL-7B-Instruct")
    assert model is not None
    assert model["source"].startswith("https://")
    assert public_model("someone/something") is None
