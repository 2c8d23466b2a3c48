"""The model card: a base model is named where others can find it."""

from __future__ import annotations

import pytest
import yaml

from muco.export.write import write_exported
from muco.model.source import find_model
from tests.helpers.model_folders import save_model
from tests.helpers.small import small


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2-VL-2B-Instruct", "hf-hub:owner/name", "/home/a/b", "./a", "a/b/c"]
)
def test_the_base_model_is_a_name_of_the_hub_and_no_path_of_this_machine(tmp_path, name):
    model = save_model(tmp_path / "model", backbone={"name": "qwen_vl", **small("qwen2_vl")})
    source = find_model(str(model))
    source.values["backbone"] |= {"pretrained": name, "random_init": None}
    write_exported(source, tmp_path / "exported", check=False, license_id=None)
    _, front, body = (tmp_path / "exported/README.md").read_text().split("---\n", 2)
    known = {"Qwen/Qwen2-VL-2B-Instruct": "Qwen/Qwen2-VL-2B-Instruct", "hf-hub:owner/name": "owner/name"}
    assert yaml.safe_load(front).get("base_model") == known.get(name)
    assert "license" not in yaml.safe_load(front)
    assert (name in body) == (known.get(name) == name)
    for unknown in ("## Training data\n\nNot recorded.", "## Scores\n\nNot recorded."):
        assert unknown in body
