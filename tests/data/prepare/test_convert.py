"""Converting outside data: whole or continued, file by file the same, and nothing lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from muco.core import Content, DataError, EncodedImage, MucoError, Pair, Sample
from muco.core.component import ComponentConfig
from muco.core.source import Source
from muco.data.prepare.convert import Conversion, Layout
from muco.data.prepare.from_cli import conversion_of
from muco.data.shards.reader import ShardReader
from tests.helpers.outside_data import (
    bomb,
    image_bytes,
    m3t_row,
    mmeb_rows,
    write_files,
    write_m3t,
    write_mmeb,
    write_parquet,
)

MUCO = [sys.executable, "-m", "muco"]


def quiet(items, number, what):
    return items


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def convert(source: str, path: Path, to: Path, *settings: str, workers: int = 0, **options):
    layout = Layout(**{key: options.pop(key) for key in vars(Layout()) if key in options})
    conversion = conversion_of(source, to, settings, path=path, layout=layout, **options)
    return conversion.run(workers=workers, progress=quiet)


@pytest.fixture(scope="module")
def m3t(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outside") / "M3T"
    write_m3t(folder, 300)
    return folder


def test_shards_hold_the_samples_of_the_source(m3t, tmp_path):
    made = convert("m3t", m3t, tmp_path / "shards", max_shard_bytes=2**17)
    reader = ShardReader(tmp_path / "shards")
    source = conversion_of("m3t", tmp_path / "other", [], path=m3t).source
    assert made.num_samples == len(reader) == 300
    assert len(reader.index.shards) > 3
    assert [reader[number] for number in range(300)] == list(source.samples())
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_several_processes_write_the_same_files(m3t, tmp_path):
    for workers in (0, 2):
        convert("m3t", m3t, tmp_path / str(workers), max_shard_bytes=2**17, workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_images_are_stored_once_by_content_and_read_from_wherever_they_lie(tmp_path):
    """Under other names, too, and over the borders of shards."""
    rows = [m3t_row(number) for number in range(40)]
    write_parquet(tmp_path / "M3T.parquet", rows)
    pictures = [image_bytes(number % 3, (200, 200)) for number in range(40)]
    write_files(tmp_path, dict(zip((row["qry_image_path"] for row in rows), pictures, strict=True)))
    convert("m3t", tmp_path / "M3T.parquet", tmp_path / "once", max_shard_bytes=2**15)
    convert("m3t", tmp_path / "M3T.parquet", tmp_path / "again", max_shard_bytes=2**15, repeat_images=True)
    once, again = ShardReader(tmp_path / "once"), ShardReader(tmp_path / "again")
    assert len(once.index.shards) > 1
    found = [once[number] for number in random.Random(0).sample(range(40), 40)]
    assert {sample.images[0].data for sample in found} == set(pictures)
    assert [once[number] for number in range(40)] == [again[number] for number in range(40)]
    stored = b"".join(contents(tmp_path / "once").values())
    assert [stored.count(picture) for picture in set(pictures)] == [1, 1, 1]


def test_images_are_copied_as_they_are_and_reduced_only_above_a_limit(tmp_path):
    write_mmeb(tmp_path / "MMEB", 2, ["ImageNet_1K"])
    convert("mmeb", tmp_path / "MMEB", tmp_path / "same")
    convert("mmeb", tmp_path / "MMEB", tmp_path / "reduced", max_pixels=900)
    convert("mmeb", tmp_path / "MMEB", tmp_path / "large_enough", max_pixels=3600)
    same, reduced = ShardReader(tmp_path / "same")[1], ShardReader(tmp_path / "reduced")[1]
    assert same.images[0].data == image_bytes(1)
    assert (same.images[0].size, reduced.images[0].size) == ((60, 60), (30, 30))
    assert ShardReader(tmp_path / "large_enough")[1] == same


def test_what_makes_no_sample_is_left_out_counted_and_named(tmp_path):
    folder = tmp_path / "MMEB"
    write_mmeb(folder, 8, ["CIRR"])
    rows = mmeb_rows("CIRR", 8)
    rows[1] |= {"pos_text": "", "pos_image_path": ""}
    rows[3] |= {"qry_image_path": ""}
    rows[5] |= {"qry_image_path": "images/CIRR/Train/gone.jpg"}
    rows[6] |= {"qry_image_path": "bomb.png"}
    rows[7] |= {"qry_image_path": "page.jpg"}
    write_parquet(folder / "CIRR" / "original-00000-of-00001.parquet", rows)
    write_files(folder, {"bomb.png": bomb(), "page.jpg": b"<html>404</html>"})
    made = convert("mmeb", folder, tmp_path / "shards")
    assert (made.num_samples, made.num_skipped) == (3, 5)
    lines = [json.loads(line) for line in (tmp_path / "shards/skipped.jsonl").read_text().splitlines()]
    assert [line["record"] for line in lines] == [1, 3, 5, 6, 7]
    assert lines[0]["name"] == "CIRR/original-00000-of-00001.parquet: row 2"
    reasons = [
        "no positive",
        "no image is named",
        "gone.jpg is missing",
        "decompression bomb",
        "no PNG, JPEG",
    ]
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line["reason"]
    reader = ShardReader(tmp_path / "shards")
    assert [reader[number].sample_id.split("/")[-1] for number in range(3)] == ["0", "2", "4"]


class WithBadText(Source):
    """Three samples: the text of the first cannot be encoded, and the third has its image."""

    class Config(ComponentConfig):
        pass

    def __len__(self) -> int:
        return 3

    def records(self, start: int = 0) -> Iterator[int]:
        return iter(range(start, 3))

    def sample(self, record: int) -> Sample:
        text, image = (("\ud800", 1), ("x", 2), ("x", 1))[record]
        pair = Pair("t", (Content(text),), Content("y"))
        return Sample(str(record), "d", (EncodedImage(image_bytes(image)),), (pair,))


def test_an_image_of_a_sample_that_cannot_be_written_is_not_that_of_the_next_sample(tmp_path):
    """The second sample takes the key that the first would have had."""
    made = Conversion("bad", WithBadText.Config(), WithBadText(), tmp_path / "shards").run(progress=quiet)
    assert (made.num_samples, made.num_skipped) == (2, 1)
    reader = ShardReader(tmp_path / "shards")
    assert [reader[index].images[0].data for index in range(2)] == [image_bytes(2), image_bytes(1)]


def test_too_much_left_out_stops_and_goes_on_when_more_is_allowed(tmp_path):
    rows = [m3t_row(number) | ({"qry_image_path": "gone.jpg"} if number % 2 else {}) for number in range(60)]
    write_m3t(tmp_path / "M3T", 60)
    write_parquet(tmp_path / "M3T/M3T_train/M3T.parquet", rows)
    with pytest.raises(DataError, match="11 of 22 records were skipped, more than --max-skipped-share"):
        convert("m3t", tmp_path / "M3T", tmp_path / "shards", max_shard_bytes=4096)
    assert not (tmp_path / "shards").exists()
    made = convert("m3t", tmp_path / "M3T", tmp_path / "shards", max_shard_bytes=4096, max_skipped_share=0.5)
    assert (made.num_samples, made.num_skipped) == (30, 30)


def test_nothing_at_all_is_an_error(tmp_path):
    write_parquet(tmp_path / "M3T.parquet", [m3t_row(0)])
    with pytest.raises(DataError, match=r"no record makes a sample\. The first one: M3T\.parquet: row 1"):
        convert("m3t", tmp_path / "M3T.parquet", tmp_path / "shards")


def test_shards_that_are_there_are_kept_and_others_refused(m3t, tmp_path):
    convert("m3t", m3t, tmp_path / "shards")
    before = (tmp_path / "shards/shard-000000.tar").stat().st_mtime_ns
    assert convert("m3t", m3t, tmp_path / "shards").num_samples == 300
    assert (tmp_path / "shards/shard-000000.tar").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds other shards: other settings"):
        convert("m3t", m3t, tmp_path / "shards", "num_negatives=1")
    (tmp_path / "full").mkdir()
    with pytest.raises(DataError, match="is not a folder of muco shards"):
        convert("m3t", m3t, tmp_path / "full")


def test_shards_of_images_that_have_changed_are_refused(tmp_path):
    write_m3t(tmp_path / "M3T", 3)
    source = conversion_of("m3t", tmp_path / "shards", [], path=tmp_path / "M3T").source
    convert("m3t", tmp_path / "M3T", tmp_path / "M3T-shards")
    before = source.revision()
    (tmp_path / "M3T/notes.txt").write_text("no image")
    convert("m3t", tmp_path / "M3T", tmp_path / "M3T/shards")  # shards are no images of the source
    assert source.revision() == before
    picture = min((tmp_path / "M3T").rglob("*.jpg"))
    picture.write_bytes(image_bytes(77))
    with pytest.raises(DataError, match="or the data has changed"):
        convert("m3t", tmp_path / "M3T", tmp_path / "M3T-shards")


def test_a_conversion_that_closed_no_shard_does_not_block_the_next(m3t, tmp_path):
    wrong = f"images={tmp_path / 'nowhere'}"
    for settings in ([wrong], [wrong, "num_negatives=1"]):
        with pytest.raises(DataError, match="were skipped, more than"):
            convert("m3t", m3t, tmp_path / "shards", *settings)
    assert convert("m3t", m3t, tmp_path / "shards").num_samples == 300


def prepare(m3t: Path, to: Path, *arguments: str) -> list[str]:
    return [*MUCO, "data", "prepare", "m3t", "--from", str(m3t), "--to", str(to), *arguments]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Enough rows that a conversion is caught in the middle: two megabytes a shard."""
    folder = tmp_path_factory.mktemp("outside") / "large"
    write_m3t(folder, 900)
    big = [image_bytes(number, (700, 700), "PNG") + os.urandom(30_000) for number in range(50)]
    for number, path in enumerate(sorted(folder.glob("images/*/*.jpg"))):
        path.write_bytes(big[number % 50] + number.to_bytes(4, "big"))
    return folder


@pytest.mark.process
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_files(large, tmp_path):
    convert("m3t", large, tmp_path / "whole", max_shard_bytes=2**20)
    command = prepare(large, tmp_path / "shards", "--shard-mib", "1", "--workers", "1")
    moment, kills = random.Random(time.time_ns()), 0
    while not (tmp_path / "shards").exists():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if kills < 2:
            closed = len(list((tmp_path / ".shards.partial").glob("shard-*.tar")))
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                now = len(list((tmp_path / ".shards.partial").glob("shard-*.tar")))
                if now > closed + moment.randrange(1, 12):
                    break
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            kills += 1
        out, _ = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), out
    assert kills == 2
    ours, theirs = contents(tmp_path / "shards"), contents(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours)


def test_a_conversion_of_changed_data_is_not_mixed_with_the_old(tmp_path):
    write_m3t(tmp_path / "M3T", 20)
    layout = Layout(max_shard_bytes=2048)
    conversion = conversion_of("m3t", tmp_path / "shards", [], path=tmp_path / "M3T", layout=layout)
    conversion.work.mkdir(parents=True)

    def stop(items, number, what):
        yield from islice(items, 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversion.run(progress=stop)
    write_m3t(tmp_path / "M3T", 21)
    with pytest.raises(DataError, match="holds another, unfinished conversion"):
        convert("m3t", tmp_path / "M3T", tmp_path / "shards")
    shutil.rmtree(conversion.work)
    assert convert("m3t", tmp_path / "M3T", tmp_path / "shards").num_samples == 21


def test_a_disk_without_room_for_the_estimate_is_reported(m3t, tmp_path, monkeypatch):
    conversion = conversion_of("m3t", tmp_path / "shards", [], path=m3t)
    estimate = conversion.estimate(quiet)
    convert("m3t", m3t, tmp_path / "shards")
    taken = sum(len(data) for name, data in contents(tmp_path / "shards").items() if name.endswith(".tar"))
    assert taken <= estimate.num_bytes <= 2 * taken
    assert estimate.num_missing == 0
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=estimate.num_bytes - 1))
    with pytest.raises(DataError, match=r"remain to be written, and .* free\. Name another folder"):
        conversion.check_disk(estimate)


@pytest.mark.parametrize("kind", ["pictures in the table", "texts of three bytes a character"])
def test_the_estimate_is_at_least_what_is_written_and_at_most_twice(tmp_path, kind):
    picture = {"bytes": image_bytes(1, (400, 400)), "path": None}
    texts = {"q": "\u732b" * 10_000, "a": "\u72ac" * 10_000}
    row = {"q": "x", "p": picture, "a": "y"} if "picture" in kind else {**texts, "p": None}
    write_parquet(tmp_path / "mine.parquet", [row])
    columns = ["columns.query_text=q", "columns.query_image=p", "columns.target_text=a"]
    conversion = conversion_of("pairs", tmp_path / "shards", columns, path=tmp_path / "mine.parquet")
    estimate = conversion.estimate(quiet).num_bytes
    conversion.run(progress=quiet)
    taken = sum(len(data) for name, data in contents(tmp_path / "shards").items() if name.endswith(".tar"))
    assert taken <= estimate <= 2 * taken


@pytest.mark.process
def test_the_command_says_what_it_will_write_and_what_it_left_out(m3t, tmp_path):
    (tmp_path / "M3T").mkdir()
    rows = [m3t_row(number) for number in range(3)]
    rows[1]["qry_image_path"] = "gone.jpg"
    write_parquet(tmp_path / "M3T/M3T_train/M3T.parquet", rows)
    to = tmp_path / "shards"
    command = prepare(tmp_path / "M3T", to, "--workers", "0", "--set", f"images={m3t}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 records, " in done.stdout
    assert "1 records lack an image" in done.stdout
    assert f"2 samples in {to}" in done.stdout
    assert f"1 records skipped, listed in {to / 'skipped.jsonl'}" in done.stdout


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("m3d", [], "no source named 'm3d'. Did you mean 'm3t'?"),
        ("m3t", [], "path: missing; it has no default. Give it as --from"),
        ("m3t", ["num_negative=1"], "num_negative: no such key. Did you mean 'num_negatives'?"),
        ("pairs", ["columns.query_text=q"], "columns: "),
        (
            "pairs",
            ["columns=q", "columns.query_text=q"],
            "columns of source pairs has no keys",
        ),
    ],
)
def test_settings_that_do_not_fit_are_reported(tmp_path, source, settings, message):
    with pytest.raises(MucoError) as caught:
        conversion_of(source, tmp_path / "to", settings)
    assert message in str(caught.value)


def test_an_image_name_of_another_sample_is_not_followed(m3t, tmp_path):
    """A record that names a member of a sample that is not there is an error; the name is not followed."""
    convert("m3t", m3t, tmp_path / "shards", repeat_images=True)
    path = tmp_path / "shards/shard-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"images":["0.jpg"]', b'"images":["9.9.9"]', 1))
    with pytest.raises(DataError, match=r"shard-000000\.tar:000000000: '9\.9' is missing"):
        ShardReader(tmp_path / "shards")[0]
    assert isinstance(ShardReader(tmp_path / "shards")[1].images[0], EncodedImage)


@pytest.mark.process
def test_ray_writes_the_same_files(m3t, tmp_path):
    pytest.importorskip("ray", reason="an extra: pip install 'muco[ray]'")
    convert("m3t", m3t, tmp_path / "local", max_shard_bytes=2**20)
    command = prepare(m3t, tmp_path / "ray", "--engine", "ray", "--shard-mib", "1")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
