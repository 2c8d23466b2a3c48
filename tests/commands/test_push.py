"""`muco push`, with a stand-in for the two calls of the hub that it makes: no request is sent."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, constants

import muco
from muco.commands.export import export
from muco.commands.push import push
from muco.core import MucoError
from tests.helpers.models import write_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    return export(str(write_model(folder / "model")), folder / "exported", check=False, license_id="mit")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> dict[str, object]:
    """Keep what is uploaded as the hub's local copy of the model."""
    calls: dict[str, object] = {}

    def create_repo(_, name, **options):
        calls["create_repo"] = (name, options)

    def upload_folder(_, *, repo_id, folder_path, **options):
        entry = tmp_path / "hub" / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder_path, entry / "snapshots" / "0123456789abcdef")
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text("0123456789abcdef")
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return calls


@pytest.mark.parametrize("public", [False, True])
def test_a_pushed_model_is_loaded_by_its_name(exported, hub, public):
    assert push(exported, "someone/photos", public=public) == "https://hub/someone/photos"
    assert hub["create_repo"] == ("someone/photos", {"private": not public, "exist_ok": True})
    expected = muco.load(exported).encode("a")
    np.testing.assert_array_equal(muco.load("someone/photos").encode("a"), expected)


def test_a_hub_that_cannot_be_reached_is_an_error_in_words(exported, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(MucoError, match="someone/photos: the hub did not take the model"):
        push(exported, "someone/photos")


def test_what_is_no_exported_model_is_refused(exported, hub, tmp_path):
    with pytest.raises(MucoError, match="no exported model here"):
        push(tmp_path, "someone/photos")
    copy = shutil.copytree(exported, tmp_path / "copy")
    card = (copy / "README.md").read_text()
    (copy / "README.md").write_text(card.replace("license: mit\n", ""))
    with pytest.raises(MucoError, match="`license` is missing"):
        push(copy, "someone/photos")
    (copy / "README.md").unlink()
    with pytest.raises(MucoError, match="no valid model card"):
        push(copy, "someone/photos")
    assert hub == {}


def test_what_the_hub_refuses_is_told_in_words(exported, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Client Error: Unauthorized\nand more")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(MucoError, match="someone/photos: the hub did not take the model: 401 Client Error"):
        push(exported, "someone/photos")
    with pytest.raises(MucoError, match="did not take the model"):
        push(exported, "not a name")
