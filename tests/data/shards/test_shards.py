"""Folders of shards: what is written is read back, by us and by others, and broken files are errors."""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from muco.core import Content, DataError, EncodedImage, Pair, Sample, Video
from muco.data.prepare.cached import cached_shards
from muco.data.shards.format import to_members
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.datasets.scenes.source import Scenes
from muco.plugins.packers.single_turn import SingleTurn
from muco.plugins.samplers.mixture import Mixture
from muco.training.batches import StepBatches
from tests.helpers.shards import all_of, plain, write
from tests.helpers.small import SMALL, TEXTS, picture


def encoded(kind: str, colour: str = "red", size: tuple[int, int] = (60, 60)) -> EncodedImage:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return EncodedImage(buffer.getvalue())


IMAGES = [picture("red", (20, 20)), encoded("JPEG"), encoded("WEBP"), EncodedImage(b"no image")]
CONTENTS = st.builds(Content, st.text(max_size=20), st.lists(st.sampled_from(IMAGES), max_size=2).map(tuple))
SAMPLES = st.builds(
    Sample,
    sample_id=st.text(max_size=8),
    dataset=st.text(max_size=8),
    images=st.lists(st.sampled_from(IMAGES), max_size=3).map(tuple),
    pairs=st.lists(
        st.builds(
            Pair,
            task=st.text(max_size=8),
            queries=st.lists(CONTENTS, min_size=1, max_size=3).map(tuple),
            target=CONTENTS.filter(bool),
            negatives=st.lists(CONTENTS, max_size=2).map(tuple),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six samples in three shards."""
    return write(tmp_path / "six", [plain(number, IMAGES[0]) for number in range(6)], max_shard_bytes=3000)


def refusal(folder: Path) -> str:
    """Return the error of opening the folder or of reading one of its samples."""
    with pytest.raises(DataError) as caught:
        all_of(folder)
    return str(caught.value)


# What is written is read


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SAMPLES, min_size=1, max_size=4), st.sampled_from([1, 4000, 2**20]))
def test_samples_are_read_as_they_were_written(tmp_path_factory, samples, max_shard_bytes):
    folder = tmp_path_factory.mktemp("shards") / "any"
    assert all_of(write(folder, samples, max_shard_bytes=max_shard_bytes)) == samples


def test_captions_are_kept_and_take_no_room_where_there_are_none(tmp_path):
    pair = Pair("t", (Content("which?", (IMAGES[1],), "a second"),), Content("", (IMAGES[2],), "a third"))
    captioned = Sample("0", "plain", (IMAGES[0],), (pair,), caption="a first")
    folder = write(tmp_path / "captioned", [captioned, plain(1)])
    assert all_of(folder) == [captioned, plain(1)]
    assert b"caption" not in (write(tmp_path / "silent", [plain(1)]) / "shard-000000.tar").read_bytes()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_plain_webdataset_reads_the_shards(shards):
    files = sorted(map(str, shards.glob("*.tar")))
    found = list(webdataset.WebDataset(files, shardshuffle=False))
    gc.collect()
    ours = all_of(shards)
    assert [record["__key__"] for record in found] == [f"{number:09d}" for number in range(48)]
    for record, sample in zip(found, ours, strict=True):
        meta = json.loads(record["json"])
        assert (meta["version"], meta["sample_id"], meta["dataset"]) == (1, sample.sample_id, "scenes")
        assert [pair["task"] for pair in meta["pairs"]] == [pair.task for pair in sample.pairs]
        assert [record[name] for name in meta["images"]] == [image.data for image in sample.images]
        assert {"__key__", "__url__", "json"} <= record.keys()


def test_an_image_lies_in_its_sample_once_under_the_suffix_of_its_format(tmp_path):
    content = Content("", tuple(IMAGES[:3]))
    pair = Pair("t", (content, Content("again", (IMAGES[3],))), content, (content,))
    folder = write(tmp_path / "one", [Sample("0", "d", (IMAGES[1], IMAGES[1]), (pair,))])
    with tarfile.open(folder / "shard-000000.tar") as tar:
        names = tar.getnames()
        assert {(entry.mtime, entry.mode, entry.uid, entry.uname) for entry in tar} == {(0, 0o644, 0, "")}
    assert names == [f"000000000.{suffix}" for suffix in ("json", "0.jpg", "1.png", "2.webp", "3.bin")]


def test_the_same_samples_are_the_same_bytes(tmp_path, folder):
    again = write(tmp_path / "again", all_of(folder), max_shard_bytes=3000)
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        "index.npy",
        "shard-000000.tar",
        "shard-000001.tar",
        "shard-000002.tar",
    ]
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert ShardReader(folder).index.fingerprint == ShardReader(again).index.fingerprint
    other = write(tmp_path / "other", all_of(folder)[:5], max_shard_bytes=3000)
    assert ShardReader(folder).index.fingerprint != ShardReader(other).index.fingerprint


def test_the_index_is_what_its_page_says(folder):
    """docs/shards.md, byte for byte."""
    meta = json.loads((folder / "index.json").read_text())
    assert (meta["version"], meta["num_samples"], meta["about"]) == (1, 6, {"made": "by hand"})
    assert [shard["file"] for shard in meta["shards"]] == [f"shard-00000{number}.tar" for number in range(3)]
    assert [shard["num_samples"] for shard in meta["shards"]] == [2, 2, 2]
    rows = np.load(folder / "index.npy")
    assert rows.itemsize == 24
    raw = (folder / "index.npy").read_bytes()[-24:]
    shard, key, offset, size = struct.unpack("<IIQQ", raw)
    assert (shard, key, offset + size + 1024) == (2, 5, meta["shards"][2]["num_bytes"])
    entries = (folder / "shard-000002.tar").read_bytes()[offset : offset + size]
    with tarfile.open(fileobj=io.BytesIO(entries)) as tar:
        assert tar.getnames() == ["000000005.json", "000000005.0.png"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_the_examples_of_the_page_about_shards_are_true(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[3] / "docs" / "shards.md").read_text(encoding="utf-8")
    write_ours, read_all, read_one = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    record, with_video, index = map(
        json.loads, re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    )
    monkeypatch.chdir(tmp_path)
    Path("riding.jpg").write_bytes(encoded("JPEG").data)
    Path("by_day.png").write_bytes(encoded("PNG").data)
    exec(write_ours, {})
    with tarfile.open("my_photos/shard-000000.tar") as tar:
        assert json.load(tar.extractfile("000000000.json")) == record
    written = json.loads(Path("my_photos/index.json").read_text())
    assert [shard.keys() for shard in written.pop("shards")] == [
        shard.keys() for shard in index.pop("shards")
    ]
    assert len(written.pop("rows_blake2b")) == len(index.pop("rows_blake2b"))
    assert written == index
    first, *others, last = (encoded("JPEG", colour) for colour in ("red", "green", "blue", "white"))
    members = to_members(plain(0, Video((first, *others), seconds_per_frame=0.5), last))
    assert json.loads(members[0].data)["images"] == with_video["images"]
    exec(read_all, {})
    gc.collect()
    assert "000000000" in capsys.readouterr().out
    names: dict[str, object] = {}
    exec(read_one, names)
    assert names["members"] == ["000000000.json", "000000000.0.jpg", "000000000.1.png"]


def test_any_sample_is_read_without_the_others(shards):
    reader, ours = ShardReader(shards), all_of(shards)
    assert len(reader) == 48
    assert len(reader.index.shards) > 2
    for number in (47, 0, 20, 47, 5):
        assert reader[number] == ours[number]
    assert reader.name(0) == "shard-000000.tar:000000000"
    assert reader.name(47).endswith(".tar:000000047")
    with pytest.raises(IndexError):
        reader[48]


# Processes


def test_a_reader_is_picklable_and_survives_a_fork(shards):
    reader = ShardReader(shards)
    expected = [reader[number] for number in range(48)]
    assert all(pickle.loads(pickle.dumps(reader))[number] == expected[number] for number in (0, 47))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(reader.__getitem__, range(48)) == expected
    assert reader[3] == expected[3]


def test_a_reader_works_in_data_workers(shards):
    loader = DataLoader(ShardReader(shards), batch_size=None, num_workers=2)
    assert list(loader) == all_of(shards)


# Whole or not at all


def test_a_source_that_fails_leaves_nothing(tmp_path):
    def samples() -> Iterator[Sample]:
        yield plain(0)
        raise RuntimeError("the network is down")

    with pytest.raises(RuntimeError, match="the network is down"):
        write_shards(samples(), tmp_path / "data" / "new", metadata={})
    assert list((tmp_path / "data").iterdir()) == []


def test_two_processes_that_write_the_same_leave_one_whole_folder(tmp_path, folder):
    def samples() -> Iterator[Sample]:
        yield plain(0)
        shutil.copytree(folder, tmp_path / "data" / "same")
        yield plain(1)

    write_shards(samples(), tmp_path / "data" / "same", metadata={})
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["same"]
    assert len(ShardReader(tmp_path / "data" / "same")) == 6


def test_a_path_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/new: the shards cannot be written: .*File exists"):
        write(tmp_path / "file" / "new", [plain(0)])
    with pytest.raises(DataError, match="file: the shards cannot be written"):
        write(tmp_path / "file", [plain(0)])


def test_a_folder_of_shards_is_as_open_to_others_as_any_new_folder(tmp_path, folder):
    (tmp_path / "usual").mkdir()
    assert folder.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_shards_are_made_once_for_the_same_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path))
    made = []

    def shards_of(**options) -> Path:
        config = Scenes.Config(**{"num_samples": 3, **options})
        return cached_shards(
            "scenes", config, Scenes(config), lambda items, number, what: made.append(number) or items
        )

    first = shards_of()
    assert shards_of() == first
    assert made == [3]
    assert shards_of(seed=1) != first
    monkeypatch.setattr(Scenes, "version", Scenes.version + 1)
    assert shards_of() != first
    assert made == [3, 3, 3]
    assert ShardReader(first).index.metadata["settings"]["num_samples"] == 3


# A folder that is not whole


def edit(**changes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        meta = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(meta | changes))

    return change


def archive_of_rows(folder: Path) -> None:
    with open(folder / "index.npy", "r+b") as file:
        rows = np.load(file)
        file.seek(0)
        np.savez(file, rows)


def change_row(**changes) -> Callable[[Path], object]:
    """Return what changes the last row of an index, with the right digest."""

    def change(folder: Path) -> None:
        rows = np.load(folder / "index.npy")
        for name, value in changes.items():
            rows[-1][name] = value
        np.save(folder / "index.npy", rows)
        edit(rows_blake2b=blake2b(rows.tobytes(), digest_size=16).hexdigest())(folder)

    return change


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda it: (it / "index.json").unlink(), "no index.json; this is no folder of muco shards"),
        (lambda it: (it / "index.npy").unlink(), "the index is broken"),
        (lambda it: (it / "index.npy").write_bytes(b""), "the index is broken"),
        (lambda it: os.truncate(it / "index.npy", 200), "the index is broken"),
        (lambda it: np.save(it / "index.npy", np.arange(6)), "index.npy is int64 [6], not rows of samples"),
        (lambda it: np.save(it / "index.npy", np.load(it / "index.npy")[0]), "[], not rows of samples"),
        (lambda it: np.save(it / "index.npy", np.load(it / "index.npy")[None]), "[1, 6], not rows"),
        (archive_of_rows, "the index is broken"),
        (change_row(size=2**63), "index.npy does not belong to index.json"),
        (change_row(offset=2**64 - 512), "index.npy does not belong to index.json"),
        (lambda it: (it / "index.json").write_text("[" * 10**5), "nested too deeply"),
        (lambda it: (it / "index.json").write_text('{"version": ' + "1" * 5000), "the index is broken"),
        (edit(about=[1]), "the index is broken"),
        (lambda it: (it / "index.json").write_text("{"), "the index is broken"),
        (lambda it: (it / "index.json").write_text("[]"), "the index is broken"),
        (lambda it: (it / "index.json").write_bytes(b"\xff"), "the index is broken"),
        (edit(version=2), "index version 2; this muco reads 1"),
        (edit(num_samples=5), "index.npy does not belong to index.json"),
        (edit(shards=[]), "index.npy does not belong to index.json"),
        (edit(shards=[{"file": "../a.tar", "num_bytes": 10**6, "num_samples": 2, "blake2b": ""}] * 3),
         "a shard must be next to its index"),
        (lambda it: (it / "shard-000001.tar").unlink(),
         "shard-000001.tar: missing, though the index names it"),
        (lambda it: os.truncate(it / "shard-000001.tar", 3000),
         "shard-000001.tar: 3,000 bytes, the index says"),
        (lambda it: shutil.copy(it / "shard-000001.tar", it / "shard-000000.tar"),
         "shard-000000.tar:000000000: the tar holds '000000002.json' where the index has '000000000'"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_reported(folder, harm, expected):
    harm(folder)
    message = refusal(folder)
    assert expected in message
    assert str(folder) in message


def test_no_sample_at_all_is_reported(tmp_path):
    assert "the shards hold no sample" in refusal(write(tmp_path / "none", []))


def test_no_folder_is_reported(tmp_path):
    assert refusal(tmp_path / "nowhere").endswith("nowhere does not exist")
    assert "no index.json; this is no folder of muco shards" in refusal(tmp_path)


@pytest.mark.parametrize("max_shard_bytes", [1000, 2**20])
def test_the_index_of_another_folder_is_reported(tmp_path, folder, max_shard_bytes):
    """Its samples are larger, or its shards fewer."""
    samples = [plain(number, IMAGES[1]) for number in range(6)]
    other = write(tmp_path / "other", samples, max_shard_bytes=max_shard_bytes)
    shutil.copy(other / "index.npy", folder)
    assert str(folder) in refusal(folder)
    shutil.copy(other / "index.json", folder)
    assert str(folder) in refusal(folder)


# A sample that is broken


def patch(folder: Path, number: int, old: bytes, new: bytes) -> None:
    """Change the first `old` in the entries of a sample; the lengths stay."""
    assert len(old) == len(new)
    index = ShardReader(folder).index
    row = index.rows[number]
    path = folder / index.shards[row["shard"]].file
    data = path.read_bytes()
    start = data.index(old, int(row["offset"]))
    assert start < row["offset"] + row["size"]
    path.write_bytes(data[:start] + new + data[start + len(new) :])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"version":1', b'"version":7', "sample format 7; this muco reads 1 and 2. Prepare the data again."),
        (b'{"dataset"', b'["dataset"', "not a sample: "),
        (b'"plain"', b"1234567", "not a sample: 1234567 instead of text"),
        (b'"thing 3"', b"[[[[[]]]]", "not a sample: "),
        (b'"target"', b'"tarjet"', "'target' is missing from the sample"),
        (b'["0.png"]', b'["1.png"]', "'1.png' is missing from the sample"),
        (b"what is in picture", b"what is in \xff\xff\xff\xff\xff\xff\xff", "not a sample: "),
        (b"000000003.json", b"000000003.jsan", "no tar entries where the index has"),
        (b"000000003.0.png", b"000000004.0.png", "000000003': an invalid header at byte 1,024"),
    ],
)  # fmt: skip
def test_a_sample_that_is_broken_is_reported_and_the_others_are_read(folder, old, new, message):
    expected = all_of(folder)
    patch(folder, 3, old, new)
    reader = ShardReader(folder)
    with pytest.raises(DataError) as caught:
        reader[3]
    assert f"{folder}/shard-000001.tar:000000003: " in str(caught.value)
    assert message in str(caught.value)
    assert [reader[number] for number in (0, 1, 2, 4, 5)] == expected[:3] + expected[4:]


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_read_or_reported(tmp_path_factory, position, bit):
    folder = write(tmp_path_factory.mktemp("flipped") / "data", [plain(0, IMAGES[0]), plain(1)])
    path = folder / "shard-000000.tar"
    whole = path.read_bytes()
    offset = position % len(whole)
    path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1 << bit]) + whole[offset + 1 :])
    reader = ShardReader(folder)
    found = []
    for number in range(2):
        with suppress(DataError):
            found.append(reader[number].pairs[0].target.content_id)
    assert found


# Images that are broken, in a training step


def png(width: int, height: int) -> EncodedImage:
    """Return a PNG whose header claims a size and whose pixels are not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return EncodedImage(b"\x89PNG\r\n\x1a\n" + body)


def cut(image: EncodedImage) -> EncodedImage:
    return EncodedImage(image.data[: len(image.data) * 2 // 3])


BROKEN = {
    "JPEG cut short": (cut(encoded("JPEG", size=(200, 200))), "broken image"),
    "PNG cut short": (cut(encoded("PNG", size=(200, 200))), "broken image"),
    "WebP cut short": (cut(encoded("WEBP", size=(200, 200))), "image"),
    "no image": (EncodedImage(b"<html>404</html>"), "no PNG, JPEG, WebP, GIF, BMP or TIFF image (16 bytes)"),
    "empty": (EncodedImage(b""), "no PNG, JPEG, WebP, GIF, BMP or TIFF image (0 bytes)"),
    "another format": (encoded("PPM"), "no PNG, JPEG, WebP"),
    "decompression bomb": (png(100_000, 100_000), "decompression bomb"),
    "too thin": (encoded("PNG", size=(30, 6300)), "image of 30 x 6300 pixels"),
}


@pytest.fixture(scope="module")
def processor():
    return QwenVL.build(QwenVL.Config.model_validate(SMALL), texts=TEXTS).processor


def step_of(folder: Path, processor, *, chunk_tokens: int | None = None):
    return StepBatches(
        readers={"data": ShardReader(folder)},
        sampler=Mixture(Mixture.Config()),
        packer=SingleTurn(SingleTurn.Config(turns="all")),
        processor=processor,
        global_batch_size=8,
        seed=0,
        chunk_tokens=chunk_tokens,
    )[0]


@pytest.mark.parametrize("chunk_tokens", [None, 50])
@pytest.mark.parametrize("harm", BROKEN)
def test_a_broken_image_is_counted_and_named_and_the_rest_of_the_batch_kept(
    tmp_path, processor, harm, chunk_tokens
):
    image, message = BROKEN[harm]
    samples = [plain(number, IMAGES[0]) for number in range(4)]
    as_query = plain(1, image)
    as_target = Sample("target", "plain", (), (Pair("t", (Content("show it"),), Content("", (image,))),))
    folder = write(tmp_path / "data", [samples[0], as_query, samples[2], as_target])
    step = step_of(folder, processor, chunk_tokens=chunk_tokens)
    assert {each.sample for each in step.unreadable} == {
        "data/shard-000000.tar:000000001",
        "data/shard-000000.tar:000000003",
    }
    assert all(message in each.reason for each in step.unreadable)
    assert set(step.samples) == {"data/shard-000000.tar:000000000", "data/shard-000000.tar:000000002"}
    assert len(step.queries.ids) == len(step.targets.ids) == 2
    assert sum(len(chunk.ids) for chunk in step.queries.chunks) == 2


def test_a_broken_record_is_counted_and_named_and_the_rest_of_the_batch_kept(folder, processor):
    patch(folder, 3, b'{"dataset"', b'["dataset"')
    step = step_of(folder, processor)
    assert [each.sample for each in step.unreadable] == ["data/shard-000001.tar:000000003"]
    assert len(step.samples) == 5


def test_a_batch_without_a_readable_sample_is_empty(tmp_path, processor):
    step = step_of(write(tmp_path / "data", [plain(0, BROKEN["empty"][0])]), processor)
    assert (step.samples, step.queries.chunks, step.targets.chunks) == ((), (), ())
    assert len(step.unreadable) == 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_pixels_than_we_read_are_refused_before_they_are_decoded():
    with pytest.raises(DataError, match="image of 12000 x 10000 pixels; at most 100,000,000 are read"):
        png(12_000, 10_000).decode()


@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.floats(0.5, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_a_damaged_image_is_decoded_or_reported(kind, damages):
    data = bytearray(encoded(kind).data)
    for share, byte in damages:
        data[int(share * len(data))] = byte
    with suppress(DataError):
        assert EncodedImage(bytes(data)).decode().mode == "RGB"


def test_equal_sample_ids_of_two_data_sets_are_negatives(tmp_path, processor):
    samples = [
        Sample(f"a.jsonl:{n}", "pairs", (), (Pair("t", (Content(f"q{n}"),), Content(f"t{n}")),))
        for n in range(8)
    ]
    readers = {name: ShardReader(write(tmp_path / name, samples)) for name in ("en", "de")}
    batches = StepBatches(
        readers=readers,
        sampler=Mixture(Mixture.Config()),
        packer=SingleTurn(SingleTurn.Config(turns="all")),
        processor=processor,
        global_batch_size=16,
        seed=0,
    )
    step = batches[0]
    same = step.queries.ids.sample_ids[:, None] == step.targets.ids.sample_ids[None]
    assert (~same).sum(1).tolist() == [15] * 16
