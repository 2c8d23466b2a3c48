"""Images inside archives, found by the names that tables have for them and read where they lie."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from muco.core import DataError, MucoError
from muco.io.image_files import ImageFiles
from tests.helpers.outside_data import image_bytes, write_files, write_tar, write_zip

PHOTOS = {f"photos/{number}.jpg": image_bytes(number) for number in range(5)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/archives"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def packed(photos=PHOTOS) -> bytes:
    """Return a tar.gz; its pictures are noise at the end, so that it is a few blocks long."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in {**photos, "noise.bin": os.urandom(30_000)}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("photos/1.jpg", "photos/1.jpg"),
        ("photos/1.jpg", "1.jpg"),  # the folder was zipped, the table's names begin in it
        ("1.jpg", "photos/1.jpg"),
        ("./images/1.jpg", "1.jpg"),
        ("data/photos/1.jpg", "photos/1.jpg"),
        ("MMEB/CIRR/1.jpg", "images/CIRR/1.jpg"),
    ],
)
def test_heads_of_names_that_say_nothing_may_differ(folder, member, name):
    write_zip(folder / "photos.zip", {member: image_bytes(1), "other/1.jpg": image_bytes(2)})
    assert ImageFiles([folder]).image(name).data == image_bytes(1)


@pytest.mark.parametrize("member", ["other/1.jpg", "cats/1.jpg", "../1.jpg", "/1.jpg"])
def test_another_folders_file_is_another_image(folder, member):
    write_zip(folder / "photos.zip", {member: image_bytes(1)})
    with pytest.raises(DataError, match=r"image dogs/1\.jpg is missing below .*; 1 archives were searched"):
        ImageFiles([folder]).image("dogs/1.jpg")


def test_of_one_name_twice_the_later_file_counts(folder):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(2):
            entry = tarfile.TarInfo("1.jpg")
            entry.size = len(image_bytes(number))
            tar.addfile(entry, io.BytesIO(image_bytes(number)))
    assert ImageFiles([folder]).image("1.jpg").data == image_bytes(1)


def test_an_archive_itself_is_a_place_and_its_neighbours_are_not(folder):
    write_zip(folder / "a.zip", {"1.jpg": image_bytes(1)})
    write_zip(folder / "b.zip", {"2.jpg": image_bytes(2)})
    images = ImageFiles([folder / "a.zip"])
    assert images.image("1.jpg").data == image_bytes(1)
    with pytest.raises(DataError, match=r"2\.jpg is missing below"):
        images.image("2.jpg")
    with pytest.raises(DataError, match=r"1\.jpg is missing: .*/c\.zip does not exist"):
        ImageFiles([folder / "c.zip"]).image("1.jpg")


def test_frames_are_those_of_one_folder(folder):
    write_zip(folder / "a.zip", {f"{split}/v/{split}.jpg": image_bytes(1) for split in ("train", "val")})
    write_zip(folder / "b.zip", {"w/1.jpg": image_bytes(1)})
    write_zip(folder / "c.zip", {"w/1.jpg": image_bytes(2), "w/2.jpg": image_bytes(2)})
    images = ImageFiles([folder])
    assert images.names_in("val/v") == ["val/v/val.jpg"]
    assert images.names_in("w") == ["w/1.jpg"]
    with pytest.raises(DataError, match=r"a\.zip: v may be train/v and val/v; name more of its folders"):
        images.names_in("v")


def test_the_cache_folder_may_be_called_anything(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "50% #1?"))
    write_zip(folder / "a.zip", {"1.jpg": image_bytes(1)})
    assert ImageFiles([folder]).image("1.jpg").data == image_bytes(1)


@pytest.mark.parametrize("name", ["x" * 300, "loop.jpg", "folder.jpg"])
def test_names_of_no_file_are_missing(folder, name):
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "folder.jpg").mkdir()
    with pytest.raises(DataError, match="is missing below"):
        ImageFiles([folder]).image(name)


# Compressed tars


@pytest.mark.parametrize("num_parts", [1, 4])
def test_a_compressed_tar_is_read_once_into_a_plain_one(folder, cache, num_parts, capfd):
    data = packed()
    size = -(-len(data) // num_parts)
    names = ["all.tar.gz"] if num_parts == 1 else [f"all.tar.gz.part-{part:02d}" for part in range(4)]
    write_files(folder, {name: data[part * size : (part + 1) * size] for part, name in enumerate(names)})
    for _ in range(2):
        images = ImageFiles([folder])
        assert {name: images.image(name).data for name in PHOTOS} == PHOTOS
        assert images.size("photos/3.jpg") == len(image_bytes(3))
        assert images.image("images/photos/2.jpg").data == image_bytes(2)
    assert capfd.readouterr().err.count("it is decompressed once") == 1
    assert [path.name for path in folder.iterdir()] == names or num_parts > 1
    assert sorted(path.suffix for path in cache.iterdir() if path.suffix != ".lock") == [".sqlite", ".tar"]


def test_several_readers_wait_for_the_one_that_writes(folder, capfd):
    write_files(folder, {"all.tgz": packed()})
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ImageFiles([folder]).image("photos/1.jpg").data, range(4)))
    assert set(found) == {image_bytes(1)}
    assert capfd.readouterr().err.count("it is decompressed once") == 1


def test_what_is_found_elsewhere_leaves_it_closed(folder, cache):
    """Neither for a plain file, nor for a plain archive, nor where someone wrote it as a plain tar."""
    write_files(folder, {"all.tar.gz": b"not opened", "0.jpg": image_bytes(0)})
    write_tar(folder / "all.tar", PHOTOS)
    images = ImageFiles([folder])
    assert images.image("0.jpg").data == image_bytes(0)
    assert images.image("photos/1.jpg").data == image_bytes(1)
    with pytest.raises(DataError, match=r"gone\.jpg is missing"):
        images.image("gone.jpg")


@pytest.mark.parametrize("harm", ["cut", "flipped", "no gzip"])
def test_a_broken_one_stops_everything_and_leaves_nothing(folder, cache, harm):
    data = bytearray(packed())
    if harm == "cut":
        del data[len(data) // 2 :]
    elif harm == "flipped":
        data[-6] ^= 1
    else:
        data[:] = b"<html>"
    write_files(folder, {"all.tar.gz": bytes(data)})
    with pytest.raises(MucoError, match=r"all\.tar\.gz cannot be decompressed: .* Download it") as caught:
        ImageFiles([folder]).image("photos/1.jpg")
    assert not isinstance(caught.value, DataError), "no matter of one image: it is not skipped"
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_told_with_the_command_that_helps(folder, cache, monkeypatch):
    write_files(folder, {"all.tar.gz.part-00": packed()})
    free = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=2**30 + 1000))
    told = r"no room to decompress it\..* cat all\.tar\.gz\.part-\* \| gunzip > all\.tar"
    with pytest.raises(MucoError, match=told):
        ImageFiles([folder]).image("photos/1.jpg")
    assert list(cache.iterdir()) == []
