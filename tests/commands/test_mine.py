"""Mining with a small teacher: the graph and the hard negatives, against a search written as loops."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from rich.console import Console

from muco.commands.main import app
from muco.commands.mine import mine
from muco.core.errors import MucoError
from muco.core.sample import Content, Pair, Sample
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.io.neighbor_graph import NeighbourGraph
from muco.model.source import find_model
from tests.helpers import processes
from tests.helpers.small import QUICK, SMALL, picture

MODEL = [f"backbone.random_init={json.dumps(SMALL['random_init'])}", "backbone.template=bare",
         "pooler=turn_token",
         "backbone.min_pixels=3136", "backbone.max_pixels=3136"]  # fmt: skip


@pytest.fixture(scope="module")
def shards(registry, tmp_path_factory):
    scenes = registry.component("source", "scenes")
    folder = tmp_path_factory.mktemp("mine") / "scenes"
    source = scenes(scenes.Config(num_samples=14, turn_share=0.5))
    write_shards(source.samples(), folder, metadata={"source": "scenes"})
    return folder


def slow_neighbours(reader):
    """Rank by loops: mean query against mean answers, without equal answers and images."""
    source = find_model("qwen_vl")
    encoder = source.load(source.evaluation("x", overrides=MODEL).model).encoder
    from muco.plugins.packers.single_turn import SingleTurn

    packer = SingleTurn(SingleTurn.Config())

    @torch.inference_mode()
    def embed(contents):
        rows = [
            encoder.eval()(encoder.backbone.processor.prepare([packer.inference(each)])).vectors[0]
            for each in contents
        ]
        return torch.nn.functional.normalize(torch.stack(rows).sum(0), dim=0)

    samples = [reader[index] for index in range(len(reader))]
    queries = [
        embed([Content(p.queries[0].text, s.images + p.queries[0].images) for p in s.pairs]) for s in samples
    ]
    answers = [embed([pair.target for pair in sample.pairs]) for sample in samples]
    for index, sample in enumerate(samples):
        others = [
            other
            for other, it in enumerate(samples)
            if [pair.target for pair in it.pairs] != [pair.target for pair in sample.pairs]
            and not (it.images and it.images == sample.images)
        ]
        scores = {other: float(queries[index] @ answers[other]) for other in others}
        yield sorted(others, key=lambda other: -scores[other]), scores


def test_the_graph_ranks_the_samples_that_the_teacher_finds_alike(shards, tmp_path):
    written = mine("qwen_vl", to=tmp_path / "mined", shards=shards, range_min=2, range_max=6, num_negatives=2,
                   overrides=MODEL, console=Console(quiet=True))  # fmt: skip
    assert list(written) == ["scenes"]
    graph, reader = NeighbourGraph.read(written["scenes"]), ShardReader(shards)
    assert graph.neighbours.shape == (14, 6)
    assert graph.data == reader.index.fingerprint
    for row, (order, scores) in zip(graph.neighbours.tolist(), slow_neighbours(reader), strict=True):
        assert len(set(row)) == 6
        assert set(row) <= set(order)
        found = [scores[position] for position in row]
        assert found == pytest.approx([scores[position] for position in order[:6]], abs=1e-5)

    # As after a kill between the shards and their graph: the next start goes on, with equal settings only.
    mined = ShardReader(tmp_path / "mined/scenes-negatives")
    (tmp_path / "mined/scenes-negatives.safetensors").unlink()
    shard = tmp_path / "mined/scenes-negatives/shard-000000.tar"
    made = shard.stat().st_mtime_ns
    with pytest.raises(MucoError, match="scenes-negatives holds other shards; remove it, or"):
        mine("qwen_vl", to=tmp_path / "mined", shards=shards, range_min=3, range_max=6, num_negatives=2,
             overrides=MODEL, console=Console(quiet=True))  # fmt: skip
    mine("qwen_vl", to=tmp_path / "mined", shards=shards, range_min=2, range_max=6, num_negatives=2,
         overrides=MODEL, console=Console(quiet=True))  # fmt: skip
    assert shard.stat().st_mtime_ns == made
    assert mined.index.metadata["negatives"]["teacher"] == graph.teacher
    for position in range(14):
        near = [reader[int(row)] for row in graph.neighbours[position, 2:]]
        for turn, (pair, old) in enumerate(zip(mined[position].pairs, reader[position].pairs, strict=True)):
            assert (pair.queries, pair.target) == (old.queries, old.target)
            wrong = list(old.negatives)
            for other in near:
                same = [each.target for each in other.pairs if each.task == old.task]
                answer = (same or [other.pairs[min(turn, len(other.pairs) - 1)].target])[0]
                if answer != old.target and answer not in wrong:
                    wrong.append(answer)
            assert list(pair.negatives) == wrong[: len(old.negatives) + 2]
    beside = NeighbourGraph.read(tmp_path / "mined/scenes-negatives.safetensors")
    assert beside.data == mined.index.fingerprint != graph.data
    assert (beside.neighbours == graph.neighbours).all()


@pytest.mark.process
@pytest.mark.parametrize("output", ["scenes.safetensors", "scenes-negatives"])
def test_killed_between_its_outputs_and_started_again_gives_the_same_files(shards, tmp_path, output):
    def contents(folder):
        files = [path for path in folder.rglob("*") if path.is_file() and "vectors" not in path.parts]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def options(to):
        sets = [part for each in MODEL for part in ("--set", each)]
        return ["mine", "qwen_vl", "--to", str(to), "--shards", str(shards), "--range-min", "2",
                "--range-max", "8", "--negatives", "2", *sets]  # fmt: skip

    app(options(tmp_path / "whole"), standalone_mode=False)
    process = processes.start(tmp_path, *options(tmp_path / "killed"), start_new_session=True)
    while not (tmp_path / "killed" / output).exists() and process.poll() is None:
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    app(options(tmp_path / "killed"), standalone_mode=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_recipe_trains_on_what_a_first_run_mined(tmp_path, monkeypatch):
    """quickstart, `muco mine`, quickstart_mined, as its head says, a few steps each."""
    monkeypatch.chdir(tmp_path)

    def muco(*arguments):
        app(list(arguments), standalone_mode=False)

    def settings(*overrides):
        return [part for each in overrides for part in ("--set", each)]

    few = ["train.num_steps=3", "evaluate.suites=[]"]
    quick = [each for each in QUICK if not each.startswith(("train.num_steps", "evaluate"))]
    with pytest.raises(MucoError, match=r"(?s)data\.turns: .*`muco mine runs/quickstart --range-min 5"):
        muco("run", "recipes/quickstart_mined.yaml")
    muco("run", "recipes/quickstart.yaml", *settings(*quick, *few))
    muco("mine", "runs/quickstart", "--range-min", "2", "--range-max", "8", "--negatives", "1")

    quick = [each for each in quick if not each.startswith(("data", "sampler"))]
    sampler = ["sampler.range_min=2", "sampler.range_max=8", "sampler.community_size=4"]
    muco("run", "recipes/quickstart_mined.yaml", *settings(*quick, *few, *sampler))
    lines = (tmp_path / "runs/quickstart_mined/train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert not (tmp_path / "runs/quickstart_mined/unreadable.jsonl").exists()

    with pytest.raises(MucoError, match="was made of other data"):  # a graph of the shards without negatives
        muco("run", "recipes/quickstart_mined.yaml", *settings(*quick, *few, *sampler, "name=other",
             "sampler.graphs.turns=runs/quickstart/mined/turns.safetensors"))  # fmt: skip


def test_many_samples_on_one_image_do_not_hide_the_others(tmp_path):
    """Of an image's own samples none is a neighbour, however near they are."""
    samples = [
        Sample(
            sample_id=f"{number}",
            dataset="one",
            images=(picture("red", (56, 56)) if number < 20 else picture("blue", (56 + number, 56)),),
            pairs=(Pair("vqa", (Content("what is it?"),), Content(f"answer {number}")),),
        )
        for number in range(26)
    ]
    write_shards(samples, tmp_path / "shards", metadata={"source": "test"})
    written = mine("qwen_vl", to=tmp_path / "mined", shards=tmp_path / "shards", range_min=0, range_max=5,
                   overrides=MODEL, console=Console(quiet=True))  # fmt: skip
    for index, row in enumerate(NeighbourGraph.read(written["shards"]).neighbours.tolist()):
        assert len(set(row) - {-1}) == 5
        assert index >= 20 or min(row) >= 20


def test_what_cannot_be_mined_is_reported(shards, tmp_path):
    with pytest.raises(MucoError, match="--to"):
        mine("qwen_vl", shards=shards, overrides=MODEL)
    with pytest.raises(MucoError, match="--shards"):
        mine("qwen_vl", to=tmp_path, overrides=MODEL)
    with pytest.raises(MucoError, match=r"14 samples, and --range-min 13 .* no neighbour is left"):
        mine("qwen_vl", to=tmp_path, shards=shards, range_min=13, overrides=MODEL)
    with pytest.raises(MucoError, match="--negatives 3: more than"):
        mine(
            "qwen_vl", to=tmp_path, shards=shards, range_min=2, range_max=4, num_negatives=3, overrides=MODEL
        )
    (tmp_path / "scenes-negatives").mkdir()
    with pytest.raises(MucoError, match="is there already"):
        mine("qwen_vl", to=tmp_path, shards=shards, range_min=2, num_negatives=1, overrides=MODEL)
    assert not (tmp_path / "vectors").exists(), "the error comes before anything is encoded"
