"""The source and the suite that docs/plugins.md shows, run on a small data set."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from muco.core import DataError
from muco.core.registry import Registry
from muco.testing import check_source, check_suite
from tests.helpers.outside_data import image_bytes, write_files, write_jsonl, write_zip

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    blocks = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```', text, re.MULTILINE | re.DOTALL))
    package = tmp_path / "muco_captions"
    write_files(tmp_path, {f"muco_captions/{name}.py": b"" for name in ("__init__",)})
    for name in ("source.py", "suite.py"):
        (package / name).write_text(blocks[f"muco_captions/{name}"])
    monkeypatch.syspath_prepend(tmp_path)
    hooks = types.ModuleType("muco_captions.hooks")
    # The page shows what is added to the hooks of the package above it.
    head, _, _ = blocks["muco_projected/hooks.py"].partition("@hookimpl")
    exec(head + blocks["muco_captions/hooks.py"], vars(hooks))
    registry = Registry()
    registry.add(hooks, provider="muco-captions 0.1.0")
    yield registry
    for name in [name for name in sys.modules if name.startswith("muco_captions")]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path):
    rows = [{"photo": f"photos/{each}.jpg", "caption": f"picture {each}"} for each in range(4)]
    write_jsonl(tmp_path / "data" / "captions.jsonl", rows)
    write_zip(
        tmp_path / "data" / "photos.zip", {row["photo"]: image_bytes(each) for each, row in enumerate(rows)}
    )
    return tmp_path / "data"


def test_the_source_that_the_page_shows_keeps_the_contract(registry, folder):
    check_source(registry, "captions", {"path": str(folder)})
    component = registry.component("source", "captions")
    source = component(component.Config(path=str(folder), limit=3))
    assert [sample.images[0].data for sample in source.samples()] == [image_bytes(each) for each in range(3)]
    assert [sample.pairs[0].target.text for sample in source.samples(1)] == ["picture 1", "picture 2"]
    (record,) = list(source.records())[2:]
    assert list(source.files_of(record)) == [("photos/2.jpg", len(image_bytes(2)))]


def test_rows_without_sample_are_data_errors(registry, folder):
    rows = [
        {"photo": "photos/0.jpg"},
        {"photo": "photos/9.jpg", "caption": "x"},
        {"photo": [5], "caption": "x"},
    ]
    write_jsonl(folder / "captions.jsonl", rows)
    component = registry.component("source", "captions")
    source = component(component.Config(path=str(folder)))
    for record, message in zip(
        source.records(), ("caption is empty", "9.jpg is missing", "not text"), strict=True
    ):
        with pytest.raises(DataError, match=message):
            source.sample(record)


def test_the_suite_that_the_page_shows_keeps_the_contract(registry, folder):
    check_suite(registry, "caption_search", {"data": str(folder)})
    component = registry.component("suite", "caption_search")
    (task,) = component(component.Config(data=str(folder))).tasks()
    assert [content.images[0].data for content in task.pool] == [image_bytes(each) for each in range(4)]
    (folder / "photos.zip").unlink()
    with pytest.raises(DataError, match=r"4 images are missing.*Unpack the photographs there"):
        list(component(component.Config(data=str(folder))).tasks())
