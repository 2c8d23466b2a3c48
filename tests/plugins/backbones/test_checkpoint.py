from __future__ import annotations

import contextlib
import io
import json
import os
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from muco.core import DataError, MucoError
from muco.plugins.backbones.checkpoint import load_image_processor, load_model
from muco.testing import dialogue_of
from tests.helpers.backbones import BACKBONES, REGISTRY
from tests.helpers.small import FAMILIES, LLAVA_FAMILIES, TEXTS, picture

DECODERS = (*FAMILIES, *LLAVA_FAMILIES, "idefics")


def build(family: str, **settings: object):
    """Return the smallest backbone of a family, or with `pretrained` that of a folder."""
    name, random = BACKBONES[family]
    cls: Any = REGISTRY.component("backbone", name)
    return cls.build(cls.Config.model_validate(settings or random), texts=TEXTS)


@pytest.fixture(scope="module", params=DECODERS)
def backbone(request):
    torch.manual_seed(0)
    return build(request.param)


@pytest.mark.parametrize("family", BACKBONES)
def test_a_model_that_is_loaded_is_saved_with_equal_bytes(family, tmp_path):
    """So a run that was resumed leaves the files of one that was not."""
    name, settings = BACKBONES[family]
    cls: Any = REGISTRY.component("backbone", name)
    config = cls.Config.model_validate(settings)
    cls.build(config, texts=TEXTS).save(tmp_path / "first")
    cls.load(config, tmp_path / "first").save(tmp_path / "second")
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "first", tmp_path / "second")
    )
    assert first == second


@pytest.fixture
def folder(backbone, tmp_path):
    backbone.save(tmp_path)
    return tmp_path


def load(backbone, folder):
    return load_model(str(folder), "float32", backbone=backbone.name, families=backbone.families)


def change(file, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def old_name(family: str, name: str) -> str:
    """Return a weight's name in checkpoints that transformers wrote before 4.52."""
    if family in ("qwen2_vl", "qwen2_5_vl"):
        return name if name.startswith("visual.") else "model." + name.removeprefix("language_model.")
    if family.startswith("llava"):
        return clip_name(family, name.replace("language_model.", "language_model.model."))
    return f"model.{name}"


def clip_name(family: str, name: str) -> str:
    """Return the name with the prefix that vision towers of LLaVA had before 5.0."""
    if not family.startswith("llava"):
        return name
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


def write(folder, backbone, layout: str, *, head: bool) -> dict[str, torch.Tensor]:
    """Write the weights under the names of that layout; without head, the head is tied to the embeddings."""
    family, weights = backbone.model.config.model_type, backbone.model.state_dict()
    rename = {
        "before 4.52": lambda name: old_name(family, name),
        "4.52": lambda name: f"model.{clip_name(family, name)}",
        "5": lambda name: f"model.{name}",
    }[layout]
    renamed = {rename(name): weight for name, weight in weights.items()}
    if head:
        is_old_llava = layout == "before 4.52" and family.startswith("llava")
        name = "language_model.lm_head.weight" if is_old_llava else "lm_head.weight"
        renamed[name] = torch.randn_like(backbone.model.get_input_embeddings().weight)
    change(folder / "config.json", architectures=["ForConditionalGeneration"], tie_word_embeddings=not head)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return weights


@pytest.mark.parametrize("head", [False, True], ids=["tied", "head"])
@pytest.mark.parametrize("layout", ["before 4.52", "4.52", "5"])
def test_every_public_layout_of_weights_is_read(backbone, folder, layout, head):
    expected = write(folder, backbone, layout, head=head)
    actual = load(backbone, folder).state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())


def test_shards_that_transformers_writes_are_read_and_saved_as_ever(backbone, folder, tmp_path_factory):
    from transformers import AutoModelForImageTextToText

    whole = AutoModelForImageTextToText.from_config(backbone.model.config)
    whole.base_model.load_state_dict(backbone.model.state_dict())
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").is_file()
    state = torch.random.get_rng_state()
    model = load(backbone, folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = tmp_path_factory.mktemp("again")
    model.save_pretrained(again)
    actual, expected = load(backbone, again).state_dict(), backbone.model.state_dict()
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())


def test_a_missing_weight_is_an_error_and_a_missing_head_is_not(backbone, folder):
    state = torch.random.get_rng_state()
    write(folder, backbone, "4.52", head=False)
    change(folder / "config.json", tie_word_embeddings=False)
    load(backbone, folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = {f"model.{name}": weight for name, weight in backbone.model.state_dict().items()}
    last = [name for name in weights if name.startswith(f"model.{backbone.vision_name}.")][-1]
    del weights[last]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=f"missing: {re.escape(last)}"):
        load(backbone, folder)


@pytest.fixture
def marker(tmp_path, tmp_path_factory, monkeypatch):
    """Return the file that code in `tmp_path` writes if it is run; every question is answered yes."""
    marker = tmp_path_factory.mktemp("marker") / "ran"
    (tmp_path / "code.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    return marker


@pytest.mark.parametrize("model_type", ["qwen2_vl", "other"])
def test_the_code_of_a_checkpoint_is_never_run(tmp_path, marker, capsys, model_type):
    build("qwen2_vl").save(tmp_path)
    autos = ("Config", "Model", "ModelForImageTextToText", "Processor", "ImageProcessor")
    change(
        tmp_path / "config.json",
        model_type=model_type,
        auto_map={f"Auto{name}": f"code.{name}" for name in autos},
    )
    change(tmp_path / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Slow", "code.Fast"]})
    change(tmp_path / "preprocessor_config.json", auto_map={"AutoImageProcessor": "code.ImageProcessor"})
    if model_type == "other":
        with pytest.raises(MucoError, match="cannot be loaded"):
            build("qwen2_vl", pretrained=str(tmp_path))
    else:
        build("qwen2_vl", pretrained=str(tmp_path))
    assert "[y/N]" not in capsys.readouterr().out
    assert not marker.exists()


def test_the_code_of_a_tokenizer_is_never_run(tmp_path, marker, capsys):
    build("clip").save(tmp_path)
    auto_map = {"AutoTokenizer": ["code.Slow", "code.Fast"]}
    change(tmp_path / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Other")
    with contextlib.suppress(MucoError):
        build("clip", pretrained=str(tmp_path))
    assert "[y/N]" not in capsys.readouterr().out
    assert not marker.exists()


BOUNDS = {"min_pixels": 256 * 28 * 28, "max_pixels": 1280 * 28 * 28}


@pytest.mark.parametrize(
    ("family", "small", "large"),
    [("qwen2_vl", 256, 1225), ("qwen2_5_vl", 256, 1225), ("qwen3_vl", 196, 961)],
)
def test_the_bounds_of_pixels_are_the_recipes_not_the_checkpoints(tmp_path, family, small, large):
    """Of 100 x 100 and 2000 x 2000 pixels; a token is 28 x 28 pixels, in Qwen3-VL 32 x 32."""
    build(family).save(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    change(file, min_pixels=3136, max_pixels=12845056, do_resize=False)
    processor = build(family, pretrained=str(tmp_path), **BOUNDS).processor
    for size, tokens in ((100, small), (2000, large)):
        tensors = processor.prepare([dialogue_of(["a"], [picture("red", (size, size))])]).tensors
        assert (tensors["input_ids"] == processor.image_id).sum() == tokens
        assert len(tensors["pixel_values"]) == 4 * tokens


def test_a_setting_that_a_checkpoint_overrules_is_an_error(tmp_path):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12845056}))
    with pytest.raises(MucoError, match=r"preprocessor_config\.json makes size .*12845056"):
        load_image_processor(Qwen2VLImageProcessorPil, tmp_path, size=size)
    file.write_text("{}")
    assert load_image_processor(Qwen2VLImageProcessorPil, tmp_path, size=size).size == size


@pytest.mark.parametrize("family", [*LLAVA_FAMILIES, "idefics"])
def test_pictures_are_resized_whatever_the_checkpoint_says(tmp_path, family):
    build(family).save(tmp_path)
    change(tmp_path / "preprocessor_config.json", do_resize=False)
    processor = build(family, pretrained=str(tmp_path)).processor
    pixels = processor.prepare([dialogue_of(["a"], [picture("red", (100, 60))])]).tensors["pixel_values"]
    assert pixels.shape[-2:] == (56, 56)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "clip"])
def test_adapters_of_peft_beside_the_weights_are_refused(tmp_path, family):
    build(family).save(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(MucoError, match=r"adapter_config\.json.*merge_and_unload"):
        build(family, pretrained=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("./models/none", "does not exist"),
        ("models/none", "does not exist"),
        ("runs/none/model", "does not exist"),
        ("~/none", "does not exist"),
        ("/none", "does not exist"),
        ("models/file", "is not a folder"),
    ],
)
def test_a_path_that_is_not_there_is_not_looked_for_on_a_hub(tmp_path, monkeypatch, name, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/file").touch()
    with pytest.raises(MucoError, match=rf"backbone\.pretrained: .*{name.removeprefix('~')} {problem}"):
        build("qwen2_vl", pretrained=name)


def test_a_named_pipe_in_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(MucoError, match=r"config\.json is no regular file"):
        build("qwen2_vl", pretrained=str(tmp_path))


def test_a_name_that_is_no_folder_is_asked_for_on_the_hub_once(monkeypatch):
    requests = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(503)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(
            MucoError, match=r"no folder owner/none here, .* A folder is written \./owner/none"
        ):
            build("qwen2_vl", pretrained="owner/none")
    finally:
        server.shutdown()
        server.server_close()
    assert [path for path in requests if "owner" in path] == ["/api/models/owner/none"]
