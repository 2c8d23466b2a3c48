"""Where `muco.load` finds a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

import muco
from muco.core import MucoError
from tests.helpers.models import write_model


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A hub that cannot be reached, and its empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_hub_name_is_read_from_the_local_copy(hub):
    entry = hub / "models--someone--photos"
    folder = write_model(entry / "snapshots" / "0123456789abcdef")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("0123456789abcdef")
    model = muco.load("someone/photos")
    assert model.info.name == "photos"
    np.testing.assert_array_equal(model.encode("a"), muco.load(folder).encode("a"))


def test_a_hub_name_without_a_copy_says_that_the_hub_was_asked(hub):
    with pytest.raises(MucoError, match="someone/photos: no such folder, and it cannot be downloaded"):
        muco.load("someone/photos")


@pytest.mark.parametrize("name", ["./models/nope", "../nope", "/tmp/nope/nope", "~/nope", "a/b/c"])
def test_a_path_that_is_not_there_does_not_ask_the_hub(hub, name):
    with pytest.raises(MucoError, match=f"{name}: no such folder, and no backbone"):
        muco.load(name)
