from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from itertools import pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from muco.commands.main import app
from muco.config.load import load_recipe
from muco.core import Content, DataError, MucoError, Pair, RecipeError, Sample, Video
from muco.data.prepare.resize import Limits, resize_images
from muco.data.shards.check import check_shards
from muco.data.shards.format import from_members, to_members
from muco.data.shards.reader import ShardReader
from muco.data.shards.statistics import summarize
from muco.data.shards.writer import write_shards
from muco.io.columns import PairColumns
from muco.report.samples import write_page
from tests.helpers.outside_data import write_files, write_jsonl
from tests.helpers.small import SMALL, picture

FRAMES = tuple(picture(colour, (40, 24)) for colour in ("red", "green", "blue"))
VIDEO = Video(FRAMES, 0.4)


def sample_of(*videos: Video, target: Content | None = None) -> Sample:
    pair = Pair(
        "motion", (Content("what moves?"),), target or Content("a disc"), (Content("", (FRAMES[0],)),)
    )
    return Sample("one", "films", (*videos, picture("pink", (30, 30))), (pair,))


def plain(items, length, what):
    return items


@given(st.integers(1, 60), st.integers(1, 60))
def test_frames_are_taken_evenly_from_the_first_to_the_last(length, most):
    indices = Video(FRAMES[:1] * length).frame_indices(most)
    assert len(indices) == len(set(indices)) == min(length, most)
    assert indices[0] == 0
    assert indices[-1] == length - 1 or len(indices) == 1
    steps = [after - before for before, after in pairwise(indices)]
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
        resize_images(sample_of(mixed), Limits())


def test_shards_hold_frames_as_members_and_give_the_sample_back(tmp_path):
    again = Video(FRAMES[::-1], 2)
    samples = [sample_of(VIDEO, target=Content("this", (again,))), sample_of()]
    write_shards(samples, tmp_path / "films", metadata={})
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
    reduced = resize_images(sample_of(Video(FRAMES, 0.4)), Limits(max_pixels=400))
    video = reduced.images[0]
    assert isinstance(video, Video)
    assert video.seconds_per_frame == 0.4
    assert len(video.frames) == 3
    width, height = video.size
    assert width * height <= 400


def test_check_and_show_count_frames(tmp_path):
    bad = Video((FRAMES[0], picture("red", (24, 40))))
    samples = [sample_of(VIDEO), replace(sample_of(bad), sample_id="two")]
    write_shards(samples, tmp_path / "films", metadata={})
    found = check_shards(tmp_path / "films", columns=None, decode=True, progress=plain)
    assert found.num_problems == 1
    assert "000000001: the frames of a video differ in size" in found.problems[0]
    reader = ShardReader(tmp_path / "films")
    summary = summarize(reader, most=10, progress=plain)
    assert summary.frames_a_video == [3, 2]
    assert summary.directions == {"image + video + text -> text": 2}
    write_page(tmp_path / "page.html", reader, summary, name="films", size="1", most=2)
    page = (tmp_path / "page.html").read_text()
    assert "frame 3 of 3, 0.8 s: 40 x 24" in page
    assert page.count("<figure>") == 3 + 1 + 1 + 2 + 1 + 1


def test_what_reads_no_video_says_what_does():
    from muco.core.compatibility import no_video

    message = no_video("clip")
    assert isinstance(message, MucoError)
    assert not isinstance(message, DataError)
    assert "clip reads no video" in str(message)
    assert str(message).endswith("llava, qwen_vl")


@pytest.fixture
def recipe(tmp_path):
    """A recipe that trains on a table of videos, two frames of four sizes."""
    colours = ["red", "green", "blue", "black"]
    frames = {
        f"clips/{name}/{at}.png": picture(colour, (56, 56 + 28 * size)).data
        for size, name in enumerate(colours)
        for at, colour in enumerate((name, "pink"))
    }
    write_files(tmp_path, frames)
    rows = [{"film": f"clips/{name}", "says": f"{name}, then pink"} for name in colours]
    write_jsonl(tmp_path / "films.jsonl", rows)
    columns = {"query_video": "film", "target_text": "says", "seconds_per_frame": 0.5}
    path = str(tmp_path / "films.jsonl")
    written = {
        "name": "films",
        "data": {"films": {"source": {"name": "pairs", "path": path, "columns": columns}}},
        "sampler": {"name": "mixture"},
        "packer": {"name": "multi_turn", "context": "isolated"},
        "backbone": {"name": "qwen_vl", **SMALL, "min_frame_pixels": 3136, "max_frames": 4},
        "pooler": {"name": "turn_token"},
        "loss": {"name": "multiturn_infonce", "temperature": 0.1},
        "train": {
            "num_steps": 3,
            "global_batch_size": 4,
            "learning_rate": 0.001,
            "num_workers": 0,
            "log_every": 1,
            "grad_cache": True,
            "chunk_tokens": 30,
        },
    }

    def write(**changes):
        (tmp_path / "films.yaml").write_text(yaml.safe_dump({**written, **changes}))
        return tmp_path / "films.yaml"

    return write


def test_a_table_of_videos_is_made_into_shards_and_trained_on(recipe, monkeypatch):
    path = recipe()
    monkeypatch.chdir(path.parent)
    app(["run", path.name], standalone_mode=False)
    lines = (path.parent / "runs/films/train.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_videos_in_tars_of_another_tool_are_refused(recipe, tmp_path):
    columns = {"query_video": "mp4", "target_text": "txt"}
    path = recipe(data={"films": {"shards": "films", "columns": columns}})
    with pytest.raises(RecipeError, match="not from another tool's tars"):
        load_recipe(str(path))
    write_shards([sample_of()], tmp_path / "films", metadata={})
    with pytest.raises(DataError, match="not from another tool's tars"):
        ShardReader(tmp_path / "films", columns=PairColumns.model_validate(columns))


CLIP = {"name": "clip", "random_init": {}}
LLAVA = {"name": "llava", "random_init": {"family": "llava_next"}}


@pytest.mark.parametrize(
    ("backbone", "works"),
    [
        (CLIP, "`backbone.name: llava` or `backbone.name: qwen_vl`"),
        (LLAVA, "`backbone.random_init.family: llava_onevision`"),
    ],
)
def test_a_recipe_of_videos_for_what_reads_none_is_refused_before_it_runs(recipe, backbone, works):
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe(backbone=backbone)))
    message = str(caught.value)
    assert "source `pairs` as set here needs video" in message
    assert f"What works: {works}" in message
