"""`muco mine`: rank each sample's nearest others, for the sampler `mined` and as hard negatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console

from muco.config.load import validate_settings
from muco.config.recipe import Recipe
from muco.console import Terminal, progress_bar
from muco.core.errors import MucoError
from muco.core.ids import stable_id
from muco.core.sample import Content, Pair, Sample
from muco.data.shards.index import INDEX_JSON, read_index
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.distributed.ranks import Ranks
from muco.evaluation.encode import CachedEmbedder, Embedded
from muco.evaluation.score import open_embedder
from muco.evaluation.search.search import top_k
from muco.evaluation.search.vectors import TensorVectors, Vectors
from muco.io.lazy import LazyContents
from muco.io.neighbor_graph import NeighbourGraph
from muco.job import verify_data
from muco.model.source import find_model
from muco.run_folder import RunFolder
from muco.training.data import open_data

_MOST_EQUAL = 1024
"""Samples with the same answer or the same images that a search ranks in addition to those of the graph."""
_BLOCK = 2048
"""Samples that are searched at once."""


def mine(
    model: str,
    *,
    to: Path | None = None,
    shards: Path | None = None,
    range_min: int = 30,
    range_max: int = 130,
    num_negatives: int = 0,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Path]:
    """Write the neighbour graph of each data set and, with `num_negatives`, shards with hard negatives.

    The neighbours of a sample are the samples whose answers are nearest to its query by the teacher's
    embeddings; a sample with several pairs counts by their mean. Samples with the same images or with equal
    answers are left out.

    The arguments are the options of `muco mine`. Return the graph's file by data set, in the main process.
    """
    ranks = Ranks.join()
    console = (console or Terminal()) if ranks.is_main else Terminal(quiet=True)
    source = find_model(model)
    evaluation = source.evaluation(f"muco mine {model}", overrides=overrides)
    folder = to or (source.run and source.run / "mined")
    if folder is None:
        raise MucoError(f"{model} is not a run folder; name the folder of the graphs with --to")
    readers = _readers(source.run, shards)
    _check(readers, range_min, range_max, num_negatives)
    teacher = source.load(evaluation.model)
    if num_negatives:
        for name, reader in readers.items():
            metadata = _negatives_metadata(reader, teacher.weights, range_min, num_negatives)
            _has_shards(folder / f"{name}-negatives", metadata)
    written: dict[str, Path] = {}
    with open_embedder(teacher, evaluation.evaluate, folder / "vectors", console, ranks) as (embedder, _):
        for name, reader in readers.items():
            neighbours = _neighbours(reader, embedder, range_max, name, console)
            if neighbours is None:
                continue
            graph = NeighbourGraph(neighbours, reader.index.fingerprint, teacher.weights)
            written[name] = folder / f"{name}.safetensors"
            graph.write(written[name])
            console.print(f"{name}: {len(reader):,} samples, {written[name]}")
            if num_negatives:
                with_negatives = folder / f"{name}-negatives"
                _write_negatives(reader, graph, with_negatives, range_min, num_negatives)
                console.print(f"{name}: the same with hard negatives, {with_negatives}")
    return written


def _readers(run: Path | None, shards: Path | None) -> dict[str, ShardReader]:
    if shards is not None:
        return {shards.resolve().name: ShardReader(shards)}
    if run is None:
        raise MucoError("say which samples to mine with --shards; a run folder would name its own")
    recipe = validate_settings(Recipe, RunFolder(run).recipe() or {}, title=f"{run / 'recipe.yaml'}")
    verify_data(recipe.name, recipe.data, [])
    return open_data(recipe.data, lambda samples, _, __: samples)


def _check(readers: Mapping[str, ShardReader], range_min: int, range_max: int, num_negatives: int) -> None:
    """Raise MucoError for what else would fail after hours of encoding."""
    if range_max <= range_min:
        raise MucoError(f"--range-max {range_max} must be greater than --range-min {range_min}")
    if num_negatives > range_max - range_min:
        raise MucoError(
            f"--negatives {num_negatives}: more than the {range_max - range_min} neighbours from --range-min "
            f"{range_min} to --range-max {range_max}"
        )
    for name, reader in readers.items():
        if len(reader) - 1 <= range_min:
            raise MucoError(
                f"{name}: {len(reader):,} samples, and --range-min {range_min} leaves out the nearest of "
                "each: no neighbour is left. Give a smaller --range-min."
            )


def _neighbours(
    reader: ShardReader, embedder: CachedEmbedder, num_neighbours: int, name: str, console: Console
) -> NDArray[np.int32] | None:
    """Return int32 [samples, num_neighbours], nearest first, -1 for none; None but in the main process."""
    num_pairs = [len(reader[index].pairs) for index in range(len(reader))]
    sample_of_pair = np.repeat(np.arange(len(reader)), num_pairs)
    queries, answers = (
        embedder.encode(
            _contents(reader, sample_of_pair, are_queries=are_queries),
            lambda windows, number, what=what: progress_bar(windows, number, f"{name}: {what}", console),
        )
        for are_queries, what in ((True, "queries"), (False, "answers"))
    )
    if not embedder.is_main:
        return None
    image_ids, answer_ids = _ids(queries, answers, sample_of_pair, len(reader))
    num_equal = sum(
        int(np.unique(ids, return_counts=True)[1].max(initial=0))  # how often the most frequent id occurs
        for ids in (answer_ids, image_ids[image_ids != 0])
    )
    num_ranked = min(len(reader), num_neighbours + min(num_equal, _MOST_EQUAL) + 1)
    neighbours = np.full((len(reader), num_neighbours), -1, dtype=np.int32)
    with TemporaryDirectory() as folder:
        query_means, answer_means = (
            _means(side.vectors, sample_of_pair, len(reader), Path(folder) / str(number))
            for number, side in enumerate((queries, answers))
        )
        for first, stop in _blocks(len(reader)):
            query = query_means.block(first, stop)
            _, ranked = top_k(query, answer_means, num_ranked, device=embedder.device)
            for sample, nearest in zip(range(first, stop), ranked.numpy(), strict=True):
                other = (nearest != sample) & (answer_ids[nearest] != answer_ids[sample])
                other &= (image_ids[nearest] != image_ids[sample]) | (image_ids[sample] == 0)
                row = nearest[other][:num_neighbours]
                neighbours[sample, : len(row)] = row
    return neighbours


def _contents(reader: ShardReader, sample_of_pair: NDArray[np.int64], *, are_queries: bool) -> LazyContents:
    """Return the queries or the answers of all pairs."""

    @lru_cache(maxsize=1)
    def read(index: int) -> Sample:
        return reader[index]

    def content(pair_index: int) -> Content:
        index = int(sample_of_pair[pair_index])
        pair = read(index).pairs[pair_index - int(np.searchsorted(sample_of_pair, index))]
        if not are_queries:
            return pair.target
        return Content(pair.queries[0].text, read(index).images + pair.queries[0].images)

    return LazyContents(content, range(len(sample_of_pair)))


def _ids(
    queries: Embedded, answers: Embedded, sample_of_pair: NDArray[np.int64], num_samples: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an id of each sample's images, 0 for none, and an id of its answers."""
    first_pairs = np.searchsorted(sample_of_pair, np.arange(num_samples))
    by_sample = np.split(answers.content_ids, first_pairs[1:])
    answer_ids = [stable_id(*map(str, ids.tolist())) for ids in by_sample]
    return queries.image_ids[first_pairs], np.asarray(answer_ids, dtype=np.int64)


def _means(vectors: Vectors, sample_of_pair: NDArray[np.int64], num_samples: int, file: Path) -> Vectors:
    """Return the mean vector of each sample, unit length; in `file` where a sample has several."""
    if len(sample_of_pair) == num_samples:
        return vectors
    means = np.memmap(file, dtype=np.float32, mode="w+", shape=(num_samples, vectors.dim))
    for first, stop in _blocks(num_samples):
        begin, end = map(int, np.searchsorted(sample_of_pair, [first, stop]))
        np.add.at(means[first:stop], sample_of_pair[begin:end] - first, vectors.block(begin, end).numpy())
    mapped = TensorVectors(torch.from_numpy(means))
    for first, stop in _blocks(num_samples):
        means[first:stop] = F.normalize(mapped.block(first, stop), dim=1).numpy()
    return mapped


def _blocks(number: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + _BLOCK, number)) for first in range(0, number, _BLOCK))


def _write_negatives(
    reader: ShardReader, graph: NeighbourGraph, folder: Path, range_min: int, num_negatives: int
) -> None:
    """Write the samples with hard negatives, nearest first from rank `range_min` on, and their graph."""
    metadata = _negatives_metadata(reader, graph.teacher, range_min, num_negatives)
    # Settings of the teacher decide the neighbours too.
    metadata["negatives"]["neighbours"] = blake2b(graph.neighbours.tobytes(), digest_size=8).hexdigest()

    def samples() -> Iterator[Sample]:
        for index in range(len(reader)):
            sample = reader[index]
            neighbours = [reader[int(row)] for row in graph.neighbours[index, range_min:] if row >= 0]
            pairs: list[Pair] = []
            for turn, pair in enumerate(sample.pairs):
                negatives = islice(_wrong_answers(pair, turn, neighbours), num_negatives)
                pairs.append(replace(pair, negatives=(*pair.negatives, *negatives)))
            yield replace(sample, pairs=tuple(pairs))

    if not _has_shards(folder, metadata):
        write_shards(samples(), folder, metadata=metadata)
    # Row numbers are the same; the sampler refuses a graph of other data than it plans.
    data = ShardReader(folder).index.fingerprint
    NeighbourGraph(graph.neighbours, data, graph.teacher).write(folder.with_suffix(".safetensors"))


def _negatives_metadata(
    reader: ShardReader, teacher: str, range_min: int, num_negatives: int
) -> dict[str, Any]:
    """Return what decides the shards with hard negatives."""
    negatives = {"teacher": teacher, "data": reader.index.fingerprint}
    negatives |= {"range_min": range_min, "number": num_negatives}
    return {**reader.index.metadata, "negatives": negatives}


def _has_shards(folder: Path, metadata: dict[str, Any]) -> bool:
    """Return whether the folder holds these shards, as after a kill; raise MucoError if it holds others.

    `negatives` of the metadata may lack keys that are not known yet.
    """
    if not folder.exists():
        return False
    if not (folder / INDEX_JSON).exists():
        raise MucoError(f"{folder} is there already and holds no shards; remove it, or take another --to")
    stored = read_index(folder).metadata
    expected = {**metadata, "negatives": {**stored.get("negatives", {}), **metadata["negatives"]}}
    if stored != expected:
        raise MucoError(f"{folder} holds other shards; remove it, or take another --to")
    return True


def _wrong_answers(pair: Pair, turn: int, neighbours: Sequence[Sample]) -> Iterator[Content]:
    """Yield the neighbours' answers to the same question, each once, without those of the pair itself."""
    seen = {pair.target, *pair.negatives}
    for neighbour in neighbours:
        same_task = [each for each in neighbour.pairs if each.task == pair.task]
        answer = (same_task or [neighbour.pairs[min(turn, len(neighbour.pairs) - 1)]])[0].target
        if answer not in seen:
            seen.add(answer)
            yield answer
