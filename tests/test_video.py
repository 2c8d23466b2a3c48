from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muco.core import Content, DataError, MucoError, Pair, Sample, Video
from muco.data.check import check_shards
from muco.data.format import from_members, to_members
from muco.data.images import fitted
from muco.data.read import ShardReader
from muco.data.show import summarize
from muco.data.write import write_shards
from muco.data_page import write_page
from tests.small import picture

FRAMES = tuple(picture(colour, (40, 24)) for colour in ("red", "green", "blue"))
VIDEO = Video(FRAMES, 0.4)


def sample_of(*videos: Video, target: Content | None = None) -> Sample:
    pair = Pair("asked", (Content("what moves?"),), target or Content("a disc"), (Content("", (FRAMES[0],)),))
    return Sample("one", "films", (*videos, picture("pink", (30, 30))), (pair,))


def plain(items, length, what):
    return items


@given(st.integers(1, 60), st.integers(1, 60))
def test_frames_are_taken_evenly_from_the_first_to_the_last(length, most):
    places = Video(FRAMES[:1] * length).places(most)
    assert len(places) == len(set(places)) == min(length, most)
    assert places[0] == 0
    assert places[-1] == length - 1 or len(places) == 1
    steps = [after - before for before, after in zip(places, places[1:], strict=False)]
    assert not steps or max(steps) - min(steps) <= 1


def test_a_video_is_known_by_its_frames_their_order_and_their_time():
    others = [Video(FRAMES, 0.5), Video(FRAMES[::-1], 0.4), Video(FRAMES[:2], 0.4)]
    ids = {VIDEO.content_id, *(other.content_id for other in others), *(each.content_id for each in FRAMES)}
    assert len(ids) == 1 + len(others) + len(FRAMES)
    assert sample_of(VIDEO).group_id == sample_of(Video(FRAMES, 0.4)).group_id
    assert sample_of(VIDEO).group_id != sample_of(others[0]).group_id


def test_frames_that_make_no_video_are_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        Video(())
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds from frame to frame"):
            Video(FRAMES, seconds)
    mixed = Video((*FRAMES, picture("red", (24, 40))))
    with pytest.raises(DataError, match="differ in size: 40 x 24 and 24 x 40 pixels"):
        _ = mixed.size
    with pytest.raises(DataError, match="differ in size"):
        fitted(sample_of(mixed), None)


def test_shards_hold_frames_as_members_and_give_the_sample_back(tmp_path):
    again = Video(FRAMES[::-1], 2)
    samples = [sample_of(VIDEO, target=Content("this", (again,))), sample_of()]
    write_shards(samples, tmp_path / "films", about={})
    reader = ShardReader(tmp_path / "films")
    assert [reader[0], reader[1]] == samples
    with tarfile.open(tmp_path / "films" / "shard-000000.tar") as tar:
        names = [entry.name for entry in tar if entry.name.startswith("000000000.")]
        meta = json.load(io.BytesIO(tar.extractfile("000000000.json").read()))
    # Each frame once, though two videos and a negative show it.
    assert names == ["000000000.json", *(f"000000000.{number}.png" for number in range(4))]
    assert meta["version"] == 2
    assert meta["images"] == [{"frames": ["0.png", "1.png", "2.png"], "seconds_per_frame": 0.4}, "3.png"]
    target = {"frames": ["2.png", "1.png", "0.png"], "seconds_per_frame": 2.0}
    assert meta["pairs"][0]["target"]["images"] == [target]


def test_a_sample_without_videos_is_written_as_it_always_was():
    (record, *_) = to_members(sample_of())
    meta = json.loads(record.data)
    assert meta["version"] == 1
    assert meta["images"] == ["0.png"]


@pytest.mark.parametrize(
    "entry",
    [
        {"frames": [], "seconds_per_frame": 1.0},
        {"frames": ["0.png"]},
        {"frames": ["9.png"], "seconds_per_frame": 1.0},
        {"frames": [0], "seconds_per_frame": 1.0},
        {"frames": ["0.png"], "seconds_per_frame": 0},
        {"frames": ["0.png"], "seconds_per_frame": "soon"},
        [],
    ],
)
def test_a_broken_video_in_a_shard_is_an_error_of_the_data(entry):
    members = {member.suffix: member.data for member in to_members(sample_of(VIDEO))}
    meta = json.loads(members["json"])
    meta["images"][0] = entry
    with pytest.raises(DataError):
        from_members({**members, "json": json.dumps(meta).encode()})


def test_frames_are_reduced_alike():
    reduced = fitted(sample_of(Video(FRAMES, 0.4)), 400)
    video = reduced.images[0]
    assert isinstance(video, Video)
    assert video.seconds_per_frame == 0.4
    assert len(video.frames) == 3
    width, height = video.size
    assert width * height <= 400


def test_check_and_show_count_frames(tmp_path):
    bad = Video((FRAMES[0], picture("red", (24, 40))))
    write_shards([sample_of(VIDEO), sample_of(bad)], tmp_path / "films", about={})
    found = check_shards(tmp_path / "films", columns=None, decode=True, show=plain)
    assert found.num_problems == 1
    assert "000000001: the frames of a video differ in size" in found.problems[0]
    reader = ShardReader(tmp_path / "films")
    summary = summarize(reader, most=10, show=plain)
    assert summary.frames_a_video == [3, 2]
    assert summary.directions == {"image + video + text -> text": 2}
    write_page(tmp_path / "page.html", reader, summary, name="films", size="1", most=2)
    page = (tmp_path / "page.html").read_text()
    assert "frame 3 of 3, 0.8 s: 40 x 24" in page
    assert page.count("<figure>") == 3 + 1 + 1 + 2 + 1 + 1


def test_what_reads_no_video_says_what_does():
    from muco.core.fit import no_video

    told = no_video("clip")
    assert isinstance(told, MucoError)
    assert not isinstance(told, DataError)
    assert "clip reads no video" in str(told)
    assert str(told).endswith("llava, qwen_vl")
