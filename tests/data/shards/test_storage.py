"""Shards of another tool, and shards that lie elsewhere."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from muco.config.load import load_recipe
from muco.core import Content, DataError, EncodedImage, MucoError, Pair, RecipeError, Sample
from muco.data.shards.check import check_shards
from muco.data.shards.reader import ShardReader
from muco.data.shards.statistics import spread_over, summarize
from muco.data.shards.storage import RemoteStorage
from muco.data.shards.webdataset import foreign_sample, index_folder
from muco.io.columns import PairColumns
from muco.report.samples import write_page
from tests.helpers.outside_data import bomb, image_bytes, write_tar
from tests.helpers.shards import all_of, plain, write

CAPTIONS = PairColumns(query_image="jpg;png", instruction="Find a caption.", target_text="txt")
MUCO = [sys.executable, "-m", "muco"]


def quiet(items, number, what):
    return items


def foreign(folder: Path, number: int = 6) -> Path:
    """Write tars as img2dataset does: image, text and JSON of each record, in folders of their own names."""
    for shard in range(2):
        files: dict[str, bytes] = {}
        for each in range(shard * number // 2, (shard + 1) * number // 2):
            key = f"./{shard:05d}/{each:09d}"
            files[f"{key}.jpg"] = image_bytes(each)
            files[f"{key}.txt"] = f"caption {each}".encode()
            files[f"{key}.json"] = json.dumps({"caption": f"other {each}", "meta": {"id": each}}).encode()
        write_tar(folder / f"{shard:05d}.tar", files)
    return folder


# Tars of another tool


def test_tars_of_another_tool_are_read_by_columns(tmp_path):
    folder = foreign(tmp_path / "laion")
    assert index_folder(folder, quiet) == 6
    reader = ShardReader(folder, columns=CAPTIONS, dataset="laion")
    samples = [pickle.loads(pickle.dumps(reader))[number] for number in (5, 0)]
    assert [sample.images[0].data for sample in samples] == [image_bytes(5), image_bytes(0)]
    assert [sample.pairs[0].target.text for sample in samples] == ["caption 5", "caption 0"]
    assert samples[0].pairs[0].queries[0].text == "Find a caption."
    assert (samples[0].dataset, samples[0].sample_id) == ("laion", "00001.tar:00001/000000005")
    backwards = PairColumns(query_text="json.caption", target_image="jpg", task="json.meta.id")
    sample = ShardReader(folder, columns=backwards)[3]
    assert sample.pairs[0].queries[0].text == "other 3"
    assert sample.pairs[0].target.images[0].data == image_bytes(3)
    found = check_shards(folder, columns=CAPTIONS, decode=True, progress=quiet)
    assert (found.num_samples, found.num_images, found.problems) == (6, 6, [])


@pytest.mark.parametrize("column", ["json.captoin", "json.meta.none", "cls", "json.caption.x"])
def test_a_column_that_no_record_has_is_an_error(tmp_path, column):
    index_folder(foreign(tmp_path), quiet)
    columns = CAPTIONS.model_copy(update={"negative_text": column})
    with pytest.raises(DataError, match=f"no sample has a column {column}$"):
        check_shards(tmp_path, columns=columns, decode=False, progress=quiet)


def test_long_names_are_indexed_from_their_extended_headers(tmp_path):
    key = "x" * 200
    for number, kind in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        (tmp_path / str(number)).mkdir()
        with tarfile.open(tmp_path / str(number) / "a.tar", "w", format=kind) as tar:
            for name, data in {
                "a.jpg": b"1",
                "a.txt": b"2",
                f"{key}.jpg": image_bytes(1),
                f"{key}.txt": b"t",
            }.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        index_folder(tmp_path / str(number), quiet)
        sample = ShardReader(tmp_path / str(number), columns=CAPTIONS)[1]
        assert sample.images[0].data == image_bytes(1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": b"", "b.jpg": b"", "a.txt": b""}, "the files of 'a' are not consecutive"),
        ({"a.jpg": b"", "a.JPG": b""}, "two files of 'a' end in 'jpg'"),
        ({}, "the tars hold no sample"),
    ],
)
def test_tars_out_of_order_are_reported(tmp_path, files, message):
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=message):
        index_folder(tmp_path, quiet)
    assert not (tmp_path / "index.json").exists()


def test_tars_that_cannot_be_read_are_reported(tmp_path):
    folder = foreign(tmp_path / "laion")
    path = folder / "00001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(DataError, match=r"00001\.tar is cut short within \./00001/000000003\.jpg"):
        index_folder(folder, quiet)
    for size in (2560, 2700):  # between files, and within a header
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"00001\.tar is cut short: its end mark is missing"):
            index_folder(folder, quiet)
    path.write_bytes(whole[:2560] + b"something else" + whole[2574:])
    with pytest.raises(DataError, match=r"00001\.tar is broken: no file and no end mark at byte 2,560"):
        index_folder(folder, quiet)
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"00001\.tar: no plain tar that can be read"):
        index_folder(folder, quiet)
    with pytest.raises(DataError, match=r"no \*\.tar in it"):
        index_folder(tmp_path, quiet)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"`muco data index .*` makes one for tars of another tool"):
        ShardReader(folder, columns=CAPTIONS)
    index_folder(folder, quiet)
    with pytest.raises(DataError, match="need `columns` in the recipe"):
        ShardReader(folder)
    with pytest.raises(DataError, match="has an index; remove"):
        index_folder(folder, quiet)


def test_a_record_that_lacks_a_column_is_reported(tmp_path):
    files = {"a.jpg": image_bytes(1), "b.txt": b"\xff", "b.jpg": b"1", "c.txt": b"t", "c.jpg": image_bytes(2)}
    write_tar(tmp_path / "a.tar", {**files, "d.json": b"{", "d.txt": b""})
    index_folder(tmp_path, quiet)
    reader = ShardReader(tmp_path, columns=CAPTIONS)
    for number, message in (
        (0, "no member 'txt'; there are jpg"),
        (1, "txt is not UTF-8"),
        (3, "no member 'jpg;png'"),
    ):
        with pytest.raises(DataError, match=message):
            reader[number]
    assert reader[2].pairs[0].target.text == "t"
    with pytest.raises(DataError, match="json is no JSON"):
        ShardReader(tmp_path, columns=PairColumns(query_text="json.a", target_text="txt"))[3]


def test_a_tar_without_a_record_is_passed_over(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.jpg": image_bytes(1), "a.txt": b"t"})
    write_tar(tmp_path / "b.tar", {})
    assert index_folder(tmp_path, quiet) == 1
    assert ShardReader(tmp_path, columns=CAPTIONS)[0].pairs[0].target.text == "t"


@pytest.mark.parametrize(
    "change", [{"file": 3}, {"num_bytes": "1"}, {"num_samples": 99}, {"num_samples": None}, {"blake2b": 3}]
)
def test_an_index_of_something_else_is_reported(shards, tmp_path, change):
    shutil.copytree(shards, tmp_path / "data")
    index = json.loads((tmp_path / "data/index.json").read_text())
    index["shards"][0] |= change
    (tmp_path / "data/index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"is no shard|does not belong to index\.json"):
        ShardReader(tmp_path / "data")


def test_a_url_in_a_record_is_no_image(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.json": b'{"url": "https://example.org/a.jpg"}', "a.txt": b"t"})
    index_folder(tmp_path, quiet)
    with pytest.raises(DataError, match="a str instead of an image: name the member that holds the image"):
        ShardReader(tmp_path, columns=PairColumns(query_image="json.url", target_text="txt"))[0]


# Shards at a URL


@pytest.fixture
def remote(tmp_path, shards, monkeypatch):
    """The shards of the scenes in fsspec's memory, and a cache of their own."""
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    for path in shards.iterdir():
        system.pipe_file(f"/remote/{path.name}", path.read_bytes())
    yield "memory://remote"
    system.rm("/remote", recursive=True)


def cached(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("cache/remote/*/shard-*.tar"))


def test_shards_at_a_url_are_read_as_on_disk_and_fetched_once(remote, shards, tmp_path):
    reader = ShardReader(remote)
    assert cached(tmp_path) == []
    assert [reader[number] for number in range(len(reader))] == all_of(shards)
    assert len(cached(tmp_path)) == len(reader.index.shards)
    fsspec.filesystem("memory").rm("/remote/shard-000000.tar")
    assert ShardReader(remote)[0] == all_of(shards)[0], "from the cache"


def test_a_cache_folder_that_cannot_be_written_is_told_in_words(remote, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(MucoError, match=r"cannot be written.*Set \$MUCO_CACHE"):
        ShardReader(remote)


def test_the_cache_keeps_within_its_bound(remote, shards, tmp_path):
    sizes = [shard.num_bytes for shard in ShardReader(shards).index.shards]
    bound = 2 * max(sizes)
    reader = ShardReader(remote, cache_bytes=bound)
    for number in (0, 47, 20, 5, 40, 12, 0, 30, 47):
        assert reader[number] == all_of(shards)[number]
        assert sum(path.stat().st_size for path in cached(tmp_path)) <= bound
    with pytest.raises(DataError, match="more than the cache may hold; raise cache_gib"):
        ShardReader(remote, cache_bytes=max(sizes) - 1)


def test_what_changed_at_the_url_is_fetched_anew_and_what_is_wrong_refused(remote, tmp_path):
    ShardReader(remote)[0]
    other = write(tmp_path / "other", [plain(number) for number in range(6)])
    system = fsspec.filesystem("memory")
    for path in other.iterdir():
        system.pipe_file(f"/remote/{path.name}", path.read_bytes())
    assert ShardReader(remote)[5] == plain(5)
    system.pipe_file("/remote/shard-000000.tar", b"\0" * (other / "shard-000000.tar").stat().st_size)
    for path in cached(tmp_path):
        path.unlink()
    with pytest.raises(DataError, match="does not have the checksum in its index"):
        ShardReader(remote)[0]
    assert cached(tmp_path) == []


@pytest.mark.process
def test_what_a_killed_process_fetched_in_part_is_written_over(remote, shards, tmp_path):
    killed = (
        "import os, sys; from pathlib import Path; from muco.data.shards.reader import ShardReader\n"
        "reader = ShardReader(sys.argv[1])\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "reader[0]"
    )
    url = f"local://{shards}"
    for _ in range(2):
        ShardReader(url)
        assert subprocess.run([sys.executable, "-c", killed, url]).returncode == 9
    assert len(list(tmp_path.glob("cache/remote/*/.*.partial"))) == 1
    assert ShardReader(url)[0] == all_of(shards)[0]
    assert list(tmp_path.glob("cache/remote/*/.*.partial")) == []


def test_a_line_that_fails_is_tried_again(remote, monkeypatch):
    from muco.data.shards import storage

    real, failures = storage._file_system, [OSError("reset"), TimeoutError("late")]

    def shaky(url):
        if failures:
            raise failures.pop()
        return real(url)

    monkeypatch.setattr(storage, "_file_system", shaky)
    monkeypatch.setattr(storage, "_FIRST_WAIT_SECONDS", 0.001)
    assert len(ShardReader(remote)) == 48
    failures += [OSError("reset")] * 9
    with pytest.raises(DataError, match=r"index\.json cannot be read: OSError: reset"):
        ShardReader(remote)


@pytest.mark.parametrize("url", ["pipe:touch owned", " PIPE:x", "simplecache::memory://a", "s3://a::b"])
def test_urls_that_run_programs_are_refused(url):
    with pytest.raises(MucoError, match="`pipe:` and chained URLs"):
        ShardReader(url)
    with pytest.raises(RecipeError, match="`pipe:` and chained URLs"):
        load_recipe("quickstart", [f"data={{a: {{shards: '{url}'}}}}"])


def test_no_shards_at_a_url_and_no_such_kind_of_url_are_reported(remote):
    with pytest.raises(DataError, match=r"no index\.json there"):
        ShardReader("memory://nowhere")
    with pytest.raises(MucoError, match="Protocol not known: nosuch"):
        RemoteStorage("nosuch://a", 1).index()


# Checking and showing


@pytest.mark.process
def test_checking_names_what_is_broken(shards, tmp_path):
    samples = [plain(0), plain(1), plain(2)]
    folder = write(tmp_path / "data", samples)
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes().replace(b"thing 1", b"thing \xff").replace(b"picture 2", b"<|image_1"))
    found = check_shards(folder, columns=None, decode=False, progress=quiet)
    assert (found.num_samples, found.num_problems) == (3, 2)
    assert "does not have the checksum in its index" in found.problems[0]
    assert f"{path}:000000001: not a sample" in found.problems[1]
    assert check_shards(shards, columns=None, decode=True, progress=quiet).problems == []
    done = subprocess.run([*MUCO, "data", "check", str(folder)], capture_output=True, text=True)
    assert (done.returncode, "2 problems" in done.stderr) == (2, True)
    done = subprocess.run([*MUCO, "data", "check", str(shards)], capture_output=True, text=True)
    assert "no problems; 48 samples" in done.stdout, done.stderr


def test_a_page_shows_samples_and_runs_nothing_of_theirs(tmp_path):
    evil = "<script>alert(1)</script>{{ 7 * 7 }}"

    pair = Pair(
        evil, (Content(evil),), Content(evil, (EncodedImage(image_bytes(1, (900, 300))),)), (Content("n"),)
    )
    broken = Sample("broken", evil, (EncodedImage(bomb()),), (pair,))
    folder = write(tmp_path / "data", [Sample(evil, "d", (), (pair,)), broken, *map(plain, range(30))])
    reader = ShardReader(folder)
    found = summarize(reader, most=100, progress=quiet)
    assert (found.num_samples, found.num_seen, found.num_unreadable) == (32, 32, 1)
    assert found.directions["text -> image + text"] == 1
    page = tmp_path / "page.html"
    write_page(page, reader, found, name=evil, size="1 MiB", most=8)
    html = page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 7 * 7 }}" in html
    assert "900 x 300" in html
    assert "default-src" in html
    assert html.count("<article>") == 8
    assert 'src="http' not in html


def test_samples_are_spread_evenly():
    assert spread_over(3, 5) == [0, 1, 2]
    assert spread_over(101, 5) == [0, 25, 50, 75, 100]


@pytest.mark.process
def test_show_prints_the_figures(shards, tmp_path):
    page = tmp_path / "page.html"
    command = [*MUCO, "data", "show", str(shards), "--html", str(page), "--samples", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "48 samples, " in done.stdout
    assert "pairs classification" in done.stdout
    assert page.read_text().count("<article>") == 3
    assert Image.MIME["JPEG"] in page.read_text()


def test_the_byte_order_mark_and_carriage_returns_of_a_text_are_no_part_of_it():
    texts = (b"\xef\xbb\xbfred", b"red\r", b"red\r\n", b"red\n", b"red")
    samples = [
        foreign_sample({"jpg": image_bytes(1), "txt": text}, CAPTIONS, name="0", dataset="d")
        for text in texts
    ]
    assert {sample.pairs[0].target.text for sample in samples} == {"red"}
    assert len({sample.pairs[0].target.content_id for sample in samples}) == 1
