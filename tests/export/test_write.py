"""Exported folders of every family: the same vectors in muco, sentence-transformers and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from muco.core import MucoError
from muco.core.exported import Exported
from muco.export.check import compare, own_vectors
from muco.export.probes import make_probes
from muco.export.readers import TransformersReader
from muco.export.write import write_exported
from muco.model.folder import LoadedModel
from muco.model.source import find_model
from muco.plugins.backbones.decoder.chat import EMB
from tests.helpers.llama_tokenizer import llama_tokenizer
from tests.helpers.model_folders import save_model
from tests.helpers.qwen_tokenizer import qwen_tokenizer
from tests.helpers.small import TEXTS, small, small_idefics, small_llava

CPU = torch.device("cpu")
ADAPTER = {"adapter": {"rank": 4}}
BOTH_WAYS = {"attention_direction": "bidirectional", "template": "chatml"}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2-VL, bare, all directions": {
        "backbone": {"name": "qwen_vl", **small("qwen2_vl", attention_direction="bidirectional")},
    },
    "Qwen2-VL, adapters, projection, matryoshka": {
        "backbone": {"name": "qwen_vl", **small("qwen2_vl", template="chatml", **ADAPTER)},
        "pooler": {"name": "turn_token", "projection_dim": 16},
        "packer": {"name": "multi_turn", "system": 'a "system" {{ text }}\n'},
        "nested_dims": (8, 16),
    },
    "Qwen2.5-VL, isolated turns": {
        "backbone": {"name": "qwen_vl", **small("qwen2_5_vl", template="chatml")},
        "packer": {"name": "multi_turn", "context": "isolated"},
    },
    "Qwen3-VL, all directions, last token": {
        "backbone": {"name": "qwen_vl", **small("qwen3_vl", **BOTH_WAYS)},
        "pooler": "last_token",
    },
    "LLaVA-1.5, adapters": {"backbone": {"name": "llava", **small_llava("llava", **ADAPTER)}},
    "LLaVA-NeXT, last token": {
        "backbone": {"name": "llava", **small_llava("llava_next")},
        "pooler": "last_token",
    },
    "OneVision, adapters, projection": {
        "backbone": {"name": "llava", **small_llava("llava_onevision", **ADAPTER)},
        "pooler": {"name": "turn_token", "projection_dim": 8},
    },
    "Idefics3": {"backbone": {"name": "idefics", **small_idefics(split_images=True)}},
}
CHAT = Exported(
    "any",
    dict.fromkeys(("text", "image", "image+text", "message"), ("forward", "last_hidden_state")),
    pools_last_token=True,
    sanitizes=True,
)


@pytest.fixture(scope="module", params=MODELS)
def written(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """Return a model's name, its folder and the exported one, which was checked when it was written."""
    home = tmp_path_factory.mktemp("export")
    model = save_model(home / "model", **MODELS[request.param])
    agreements = write_exported(find_model(str(model)), home / "exported", check=True, license_id=None)
    assert [each.kind for each in agreements][-2:] == ["several images", "mixed"]
    assert min(each.cosine for each in agreements) >= 0.9999
    return request.param, model, home / "exported"


def load(folder: Path) -> LoadedModel:
    source = find_model(str(folder))
    return source.load(source.evaluation("a test").model)


def test_transformers_alone_gives_the_vectors_of_the_trained_model(written):
    name, model, folder = written
    loaded = load(model)  # with its adapters
    exported = CHAT if not name.startswith("Idefics") else Exported(**{**vars(CHAT), "sanitizes": False})
    probes = make_probes(set(exported.methods))
    expected = own_vectors(loaded.encoder, loaded.packer, probes)
    agreements = compare(TransformersReader(folder, exported, CPU), probes, expected)
    assert min(each.cosine for each in agreements) >= 0.9999


def test_muco_reads_it_as_a_model_folder_with_equal_vectors(written):
    _, model, folder = written
    probes = make_probes({"text", "image", "image+text", "message"})
    ours, again = load(model), load(folder)
    assert (again.step, again.nested_dims) == (ours.step, ours.nested_dims)
    for expected, found in zip(
        own_vectors(ours.encoder, ours.packer, probes),
        own_vectors(again.encoder, again.packer, probes),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_it_has_no_code_and_released_names(written):
    _, _, folder = written
    assert not list(folder.rglob("*.py"))
    config = json.loads((folder / "config.json").read_text())
    assert "auto_map" not in config
    assert config["architectures"][0].endswith("ForConditionalGeneration")
    # vLLM reads every safetensors file beside the model's.
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    types = [each["type"] for each in json.loads((folder / "modules.json").read_text())]
    assert {each.rpartition(".")[0] for each in types} == {"sentence_transformers.models"}


def test_a_training_starts_from_it(tmp_path):
    parts = MODELS["Qwen2-VL, adapters, projection, matryoshka"]
    model = save_model(tmp_path / "model", **parts)
    write_exported(find_model(str(model)), tmp_path / "exported", check=False, license_id=None)
    config = json.loads((tmp_path / "exported/config.json").read_text())
    assert config["matryoshka_dimensions"] == [8, 16]
    start = {**parts["backbone"], "random_init": None, "pretrained": str(tmp_path / "exported")}
    again = save_model(tmp_path / "again", **{**parts, "backbone": start})
    assert load(again).nested_dims == (8, 16)


def checkpoint_with(tokenizer: Any, folder: Path) -> Path:
    """Write a LLaVA checkpoint with a tokenizer of another model."""
    start = save_model(folder, backbone={"name": "llava", **small_llava("llava")})
    config = json.loads((start / "config.json").read_text())
    config["image_token_index"] = config["image_token_id"] = tokenizer.convert_tokens_to_ids("<image>")
    (start / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(start)
    (start / "muco.json").unlink()
    return start


@pytest.mark.parametrize("template", ["vicuna", "mistral"])
def test_a_tokenizer_that_begins_texts_with_a_token_and_a_space(tmp_path, template):
    """As Llama's does; the model folder is a checkpoint with this tokenizer, trained on."""
    start = checkpoint_with(llama_tokenizer(), tmp_path / "start")
    backbone = {"name": "llava", "pretrained": str(start), "template": template}
    packer = {"name": "single_turn", "system": "Be brief."}
    model = save_model(tmp_path / "model", backbone=backbone, packer=packer)
    agreements = write_exported(find_model(str(model)), tmp_path / "exported", check=True, license_id=None)
    assert min(each.cosine for each in agreements) >= 0.9999


def test_a_tokenizer_whose_merges_cross_special_tokens(tmp_path):
    """As in Qwen's, " <|" is a token. In other tools, too, a special token in a text is characters."""
    special = ["<|im_start|>", "<|im_end|>", "<image>", EMB]
    tokenizer = qwen_tokenizer([*TEXTS, "a <|im_end|> b\n", "a <|im_end|> b <|"] * 9, special)
    start = checkpoint_with(tokenizer, tmp_path / "start")
    backbone = {"name": "llava", "pretrained": str(start), "template": "chatml"}
    model = save_model(tmp_path / "model", backbone=backbone, packer={"name": "single_turn", "system": ""})
    agreements = write_exported(find_model(str(model)), tmp_path / "exported", check=True, license_id=None)
    assert min(each.cosine for each in agreements) >= 0.9999
    ids = SentenceTransformer(str(tmp_path / "exported")).preprocess(["a <|im_end|> b"])["input_ids"][0]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.tolist().count(end) == 1  # that of the template


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (
            {"backbone": {"name": "qwen_vl", **small("qwen2_vl")}, "pooler": "mean"},
            "the pooler `mean` cannot be exported: it leaves the system text and the images out",
        ),
        (
            {"backbone": {"name": "qwen_vl", **small("qwen2_vl", **BOTH_WAYS)}},
            r"it is bidirectional, so its embedding token sees the '<\|im_end\|>' after it",
        ),
    ],
)
def test_what_other_tools_cannot_compute_is_refused_with_the_reason(tmp_path, parts, reason):
    model = save_model(tmp_path / "model", **parts)
    with pytest.raises(MucoError, match=reason):
        write_exported(find_model(str(model)), tmp_path / "exported", check=False, license_id=None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_check_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("muco.export.check.LEAST_COSINE", 1.1)
    model = save_model(tmp_path / "model", backbone={"name": "qwen_vl", **small("qwen2_vl")})
    with pytest.raises(MucoError, match=r"other vectors in .* so it was removed. Lowest cosine: text 1\.0"):
        write_exported(find_model(str(model)), tmp_path / "exported", check=True, license_id=None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("<|im_start|>assistant", "<|im_start|>user"), r"other vectors in transformers than in muco"),
        (("<|image_pad|>", ""), r"transformers cannot encode a batch of image .*: The total number of"),
    ],
)
def test_a_chat_template_of_another_training_is_noticed(tmp_path, change, error):
    backbone = {"name": "qwen_vl", **small("qwen2_vl", template="chatml")}
    model, folder = save_model(tmp_path / "model", backbone=backbone), tmp_path / "exported"
    write_exported(find_model(str(model)), folder, check=False, license_id=None)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace(*change))
    loaded, probes = load(model), make_probes({"text", "image"})
    expected = own_vectors(loaded.encoder, loaded.packer, probes)
    with pytest.raises(MucoError, match=error):
        compare(TransformersReader(folder, CHAT, CPU), probes, expected)
