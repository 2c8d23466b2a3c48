"""Images inside archives, found by the names that tables have for them and read where they lie."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from muco.core import DataError, MucoError
from muco.data.shards.webdataset import index_folder
from muco.io.image_files import ImageFiles
from muco.io.tar import tar_contents, tar_files
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


def test_a_name_that_starts_from_the_folder_above_is_missing_and_the_message_names_that_folder(folder):
    write_files(folder, {"photos/1.jpg": image_bytes(1)})
    with pytest.raises(DataError, match=f"It is in {folder}: set `images` to this folder"):
        ImageFiles([folder / "photos"]).image("photos/1.jpg")


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


def test_the_path_of_an_archive_does_not_include_its_neighbours(folder):
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


def test_a_full_disk_is_reported_with_the_command_that_helps(folder, cache, monkeypatch):
    write_files(folder, {"all.tar.gz.part-00": packed()})
    free = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=2**30 + 1000))
    message = r"no room to decompress it\..* cat all\.tar\.gz\.part-\* \| gunzip > all\.tar"
    with pytest.raises(MucoError, match=message):
        ImageFiles([folder]).image("photos/1.jpg")
    assert list(cache.iterdir()) == []


def test_two_archives_with_different_images_of_a_name_are_an_error_that_names_both(folder):
    write_zip(folder / "birds/images.zip", {"images/0.jpg": image_bytes(1)})
    write_tar(folder / "cars/images.tar", {"images/0.jpg": image_bytes(2), "images/1.jpg": image_bytes(3)})
    write_zip(folder / "more.zip", {"images/1.jpg": image_bytes(3)})
    images = ImageFiles([folder])
    with pytest.raises(DataError, match=r"birds/images\.zip and .*cars/images\.tar hold different images"):
        images.image("images/0.jpg")
    assert images.image("images/1.jpg").data == image_bytes(3)  # equal files are one image
    assert images.image("images/0.jpg", near="cars").data == image_bytes(2)


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_what_macos_adds_to_archives_is_left_out(folder, write):
    path = folder / f"a.{'zip' if write is write_zip else 'tar'}"
    extra = {"__MACOSX/photos/._1.jpg": b"x", "photos/._1.jpg": b"x", "photos/.DS_Store": b"x"}
    write(path, {"__MACOSX/photos/1.jpg": b"x", "photos/1.jpg": image_bytes(1), **extra})
    write_files(folder, {"._b.zip": b"x"})
    images = ImageFiles([folder])
    assert images.image("photos/1.jpg").data == image_bytes(1)
    assert images.names_in("photos") == ["photos/1.jpg"]
    with pytest.raises(DataError, match="is missing"):
        images.image("photos/._1.jpg")


def test_an_encrypted_file_is_named_as_such(folder):
    write_zip(folder / "a.zip", {"1.jpg": image_bytes(1)})
    data = bytearray((folder / "a.zip").read_bytes())
    for magic, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(magic) + offset] |= 1
    (folder / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"1\.jpg is encrypted; unpack"):
        ImageFiles([folder]).image("1.jpg")


def test_a_zip_whose_files_overlap_is_refused(folder):
    write_zip(folder / "a.zip", {"1.jpg": image_bytes(1), "2.jpg": image_bytes(1)})
    data = bytearray((folder / "a.zip").read_bytes())
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = bytes(4)  # both begin where the first does
    (folder / "a.zip").write_bytes(data)
    with pytest.raises(MucoError, match=r"a\.zip: 1\.jpg and 2\.jpg overlap"):
        ImageFiles([folder]).image("1.jpg")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_is_named_as_such(folder, kind):
    with tarfile.open(folder / "a.tar", "w") as tar:
        entry = tarfile.TarInfo("1.jpg")
        entry.type, entry.linkname = kind, "1.jpg"
        tar.addfile(entry)
    with pytest.raises(DataError, match=r"1\.jpg is a link"):
        ImageFiles([folder]).image("1.jpg")


def test_names_match_whatever_their_normal_form(folder):
    composed, decomposed = (unicodedata.normalize(form, "é/ü.jpg") for form in ("NFC", "NFD"))
    write_tar(folder / "a.tar", {decomposed: image_bytes(1)})
    assert ImageFiles([folder]).image(composed).data == image_bytes(1)
    assert ImageFiles([folder]).image(decomposed).data == image_bytes(1)
    write_files(folder, {decomposed: image_bytes(2)})
    assert ImageFiles([folder]).image(composed).data == image_bytes(2)


def test_a_zip_name_in_utf8_without_the_flag_is_read(folder):
    write_zip(folder / "a.zip", {"ü.jpg": image_bytes(1)})
    data = bytearray((folder / "a.zip").read_bytes())
    for magic, offset in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        data[data.index(magic) + offset] &= ~0x08
    (folder / "a.zip").write_bytes(data)
    assert ImageFiles([folder]).image("ü.jpg").data == image_bytes(1)


def test_a_data_url_is_not_repeated(folder):
    with pytest.raises(DataError, match="data: URL") as caught:
        ImageFiles([folder]).image("data:image/png;base64," + "A" * 9999)
    assert len(str(caught.value)) < 200


def test_only_regular_files_are_opened(folder):
    for name in ("a.zip", "a.tar", "b.tar.gz", "c.tar.gz.part-00"):
        os.mkfifo(folder / name)
    with pytest.raises(DataError, match="0 archives were searched"):
        ImageFiles([folder]).image("1.jpg")
    with pytest.raises(DataError, match="no regular file"):
        list(tar_files(folder / "a.tar"))


def test_a_damaged_list_in_the_cache_is_made_again(folder, cache):
    write_zip(folder / "a.zip", {"1.jpg": image_bytes(1)})
    ImageFiles([folder]).image("1.jpg")
    (index,) = cache.glob("*.sqlite")
    for damaged in (b"", b"no database", index.read_bytes()[:100] + bytes(9000)):
        index.write_bytes(damaged)
        assert ImageFiles([folder]).image("1.jpg").data == image_bytes(1)


def header(name: str = "1.jpg", *, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a tar header whose size may be negative or too large."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def pax(key: str, value: str) -> bytes:
    record = f" {key}={value}\n"
    length = len(record) + len(str(len(record) + 2))
    data = f"{length}{record}".encode()
    return header("pax", size=len(data), kind=tarfile.XHDTYPE) + data.ljust(512, b"\0")


BROKEN_TARS = {
    "negative size": header(size=-512) + bytes(2048),
    "negative PAX size": pax("size", "-1024") + header() + bytes(2048),
    "PAX header of gigabytes": header("pax", size=2**40, kind=tarfile.XHDTYPE) + bytes(2048),
    "GNU name of gigabytes": header("././@LongLink", size=2**40, kind=tarfile.GNUTYPE_LONGNAME) + bytes(2048),
    "GNU names without end": header("././@LongLink", size=1, kind=tarfile.GNUTYPE_LONGNAME).ljust(1024, b"a")
    * 2000,
    "beyond the file": header(size=2**50) + bytes(2048),
}


@pytest.mark.parametrize("harm", BROKEN_TARS)
def test_a_hostile_tar_is_an_error_and_never_a_loop(folder, harm):
    (folder / "a.tar").write_bytes(BROKEN_TARS[harm])
    with pytest.raises(DataError, match=r"a\.tar"):
        list(tar_files(folder / "a.tar"))
    with pytest.raises(MucoError, match=r"a\.tar"):
        ImageFiles([folder]).image("1.jpg")
    with pytest.raises(DataError):
        list(tar_contents(BROKEN_TARS[harm], "a"))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_a_tar_of_another_tool_are_refused(folder, kind):
    entry = tarfile.TarInfo("1.jpg")
    entry.type, entry.linkname = kind, "1.jpg"
    data = entry.tobuf() + bytes(1024)
    (folder / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match="is no plain file"):
        list(tar_contents(data, "a"))
    with pytest.raises(DataError, match=r"1\.jpg is a link.*--dereference"):
        index_folder(folder, lambda items, _, __: items)
