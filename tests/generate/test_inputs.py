"""Which images are listed: of folders, archives and tables, in one order."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from muco.core import DataError, MucoError
from muco.generate.inputs import Inputs, Item, Selection, part_of, part_path
from tests.helpers.outside_data import image_bytes, write_files, write_jsonl, write_tar


def names(path: Path, **options) -> list[str]:
    return [item.image for item in Inputs(path, **options)]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_files(
        tmp_path / "in",
        {"b/2.png": image_bytes(0), "a.JPG": image_bytes(1), ".hidden/x.png": b"", "notes.txt": b""},
    )
    write_tar(tmp_path / "in" / "b" / "more.tar", {"in_tar/3.png": image_bytes(2), "3.txt": b""})
    with zipfile.ZipFile(tmp_path / "in" / "z.zip", "w") as archive:
        archive.writestr("in_zip/4.png", image_bytes(3))
    return tmp_path / "in"


def test_images_of_a_folder_and_its_archives_are_listed_and_read(folder):
    inputs = Inputs(folder)
    listed = [item.image for item in inputs]
    assert listed == ["a.JPG", "in_zip/4.png", "b/2.png", "in_tar/3.png"]
    assert listed == [item.image for item in inputs]
    assert [inputs.images.image(name).data for name in listed] == [image_bytes(n) for n in (1, 3, 0, 2)]


def test_one_archive_is_listed(folder):
    inputs = Inputs(folder / "z.zip")
    assert [inputs.images.image(item.image).data for item in inputs] == [image_bytes(3)]


def test_a_broken_archive_is_named(folder):
    archive = folder / "z.zip"
    data = archive.read_bytes()
    unknown_version = data.replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\x63")
    assert unknown_version != data
    for broken in (b"", data[:-30], unknown_version):
        archive.write_bytes(broken)
        with pytest.raises(MucoError, match=r"z\.zip: no zip archive that can be read"):
            names(archive)


def test_a_table_names_images_once_and_may_have_captions(tmp_path):
    rows = [{"photo": "1.png", "caption": "one"}, {"photo": "2.png"}, {"photo": "1.png"}, {"photo": ""}]
    write_jsonl(tmp_path / "t.jsonl", rows)
    assert list(Inputs(tmp_path / "t.jsonl", column="photo")) == [Item("1.png", "one"), Item("2.png")]
    with pytest.raises(DataError, match=r"no column 'image'\. Columns: photo, caption"):
        names(tmp_path / "t.jsonl")


def test_only_images_with_a_given_caption_are_used(folder, tmp_path):
    write_jsonl(tmp_path / "captions.jsonl", [{"image": "b/2.png", "caption": "two"}])
    assert list(Inputs(folder, captions=tmp_path / "captions.jsonl")) == [Item("b/2.png", "two")]


def test_parts_are_disjoint_and_whole(tmp_path):
    write_jsonl(tmp_path / "t.jsonl", [{"image": f"{n}.png"} for n in range(100)])
    parts = [names(tmp_path / "t.jsonl", selection=Selection((n, 3))) for n in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(f"{n}.png" for n in range(100))
    assert all(len(part) > 10 for part in parts)
    assert len(names(tmp_path / "t.jsonl", selection=Selection(sample=7))) == 7
    assert names(tmp_path / "t.jsonl", selection=Selection(limit=2)) == ["0.png", "1.png"]
    assert part_path(Path("x.jsonl"), (2, 3)) == Path("x-2-of-3.jsonl")
    for wrong in ("0/2", "3/2", "a/b", "2"):
        with pytest.raises(MucoError, match="write i/n"):
            part_of(wrong)


def test_the_first_caption_of_an_image_counts(tmp_path):
    rows = [{"image": "1.png", "caption": text} for text in ("", "one", "two")]
    captions = tmp_path / "captions.jsonl"
    write_jsonl(captions, rows)
    write_jsonl(tmp_path / "t.jsonl", [{"image": "1.png"}, {"image": "2.png"}])
    assert list(Inputs(tmp_path / "t.jsonl", captions=captions)) == [Item("1.png", "one")]
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        Inputs(tmp_path / "t.jsonl", images=tmp_path / "nowhere")
