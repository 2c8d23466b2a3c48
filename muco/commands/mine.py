"""`muco mine`: which samples a teacher finds alike, for the `mined` sampler and as hard negatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from muco.config.load import validate_evaluation, validate_recipe
from muco.console import Terminal, progress_bar
from muco.core.errors import MucoError
from muco.core.ids import stable_id
from muco.core.sample import Content, Pair, Sample
from muco.evaluation.score import open_embedder
from muco.io.lazy import LazyContents
from muco.io.neighbor_graph import NeighbourGraph
from muco.model.source import Parts, find_model
from muco.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from muco.data.shards.reader import ShardReader
    from muco.evaluation.encode import CachedEmbedder, Embedded
    from muco.evaluation.search.vectors import Vectors

_MOST_EQUAL = 1024
"""Samples of one answer or of the same images that a search looks past."""
_QUERIES = 2048


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
    """Write the neighbour graph of each data set, and shards with hard negatives where asked for.

    A sample's neighbours are the others whose answers the teacher finds nearest to its query; several pairs
    of a sample count by their mean. Left out are samples of the same images, and those of equal answers.

    Args:
        model: the teacher: a run folder, a model folder, or a backbone's name.
        to: the folder to write to; by default `mined` in the run's folder.
        shards: a folder of shards; by default the data sets of the run.
        range_min: leave out this many nearest neighbours, which are likely positives.
        range_max: keep neighbours up to this rank.
        num_negatives: hard negatives of each pair; 0 writes no shards.
        overrides: `KEY=VALUE` each, of `packer`, `backbone`, `pooler` and `evaluate`.
        console: what is told; by default the terminal.

    Returns:
        The graph's file by data set; empty in a process that only helps the main one.

    Raises:
        MucoError: something that the user can mend.
    """
    from muco.distributed.ranks import Ranks

    ranks = Ranks.join()
    console = (console or Terminal()) if ranks.is_main else Terminal(quiet=True)
    source = find_model(model)
    values = {"evaluate": {}, **source.values}
    asked = validate_evaluation(
        {**values, "evaluate": {**values["evaluate"], "suites": []}}, overrides, title=f"muco mine {model}"
    )
    folder = to or (source.results and source.results / "mined")
    if folder is None:
        raise MucoError(f"{model} is no run folder; say where the graph goes with --to")
    readers = _readers(source.results, shards)
    _check_room(readers, folder, range_min, range_max, num_negatives)
    encoder, weights = source.load(Parts.of(asked))
    written: dict[str, Path] = {}
    opened = open_embedder(
        encoder, Parts.of(asked), weights, asked.evaluate, folder / "vectors", console, ranks
    )
    with opened as (embedder, _):
        for name, reader in readers.items():
            neighbours = _neighbours(reader, embedder, range_max, name, console)
            if neighbours is None:
                continue
            graph = NeighbourGraph(neighbours, reader.index.fingerprint, weights["weights"])
            written[name] = folder / f"{name}.safetensors"
            graph.write(written[name])
            console.print(
                f"{name}: {len(reader):,} samples, {written[name]}", highlight=False, soft_wrap=True
            )
            if num_negatives:
                with_them = folder / f"{name}-negatives"
                _write_negatives(reader, graph, with_them, range_min, num_negatives)
                console.print(f"{name}: the same with hard negatives, {with_them}", soft_wrap=True)
    return written


def _check_room(
    readers: Mapping[str, ShardReader], folder: Path, range_min: int, range_max: int, num_negatives: int
) -> None:
    """Raise MucoError for what would only be found after hours of encoding."""
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
        if num_negatives and (folder / f"{name}-negatives").exists():
            raise MucoError(f"{folder / name}-negatives is there already; remove it, or take another --to")


def _readers(run: Path | None, shards: Path | None) -> dict[str, ShardReader]:
    from muco.data.shards.reader import ShardReader

    if shards is not None:
        return {shards.resolve().name: ShardReader(shards)}
    if run is None:
        raise MucoError("say which samples to mine with --shards; a run folder would name its own")
    from muco.training.build import open_data

    recipe = validate_recipe(RunFolder(run).recipe() or {}, title=f"{run / 'recipe.yaml'}")
    return open_data(recipe, lambda samples, _, __: samples)


def _side(reader: ShardReader, owners: NDArray[np.int64], *, is_query: bool) -> LazyContents:
    """Return the queries or answers of all pairs."""
    import numpy as np

    @lru_cache(maxsize=1)
    def sample(number: int) -> Sample:
        return reader[number]

    def content(place: int) -> Content:
        owner = int(owners[place])
        pair = sample(owner).pairs[place - int(np.searchsorted(owners, owner))]
        if not is_query:
            return pair.target
        return Content(pair.queries[0].text, sample(owner).images + pair.queries[0].images)

    return LazyContents(content, range(len(owners)))


def _neighbours(
    reader: ShardReader, embedder: CachedEmbedder, num_ranks: int, name: str, console: Console
) -> NDArray[np.int32] | None:
    """Return the ranked neighbours, int32 [samples, ranks]; None in a process that only encodes."""
    import numpy as np

    from muco.evaluation.search.search import top_k

    numbers = [len(reader[number].pairs) for number in range(len(reader))]
    owners = np.repeat(np.arange(len(reader)), numbers)
    sides: list[Embedded] = [
        embedder.encode(
            _side(reader, owners, is_query=is_query),
            lambda windows, number, what=what: progress_bar(windows, number, f"{name}: {what}", console),
        )
        for is_query, what in ((True, "queries"), (False, "answers"))
    ]
    if not embedder.is_main:
        return None
    images, answers = _alike(sides, owners, len(reader))
    alike = _most_equal(answers) + _most_equal(images[images != 0])
    wanted = min(len(reader), num_ranks + min(alike, _MOST_EQUAL) + 1)
    found = np.full((len(reader), num_ranks), -1, dtype=np.int32)
    with TemporaryDirectory() as folder:
        query, answer = (
            _means(side.vectors, owners, len(reader), Path(folder) / str(place))
            for place, side in enumerate(sides)
        )
        for first in range(0, len(reader), _QUERIES):
            stop = min(first + _QUERIES, len(reader))
            _, rows = top_k(query.block(first, stop), answer, wanted, device=embedder.device)
            for sample, near in zip(range(first, stop), rows.numpy(), strict=True):
                others = (near != sample) & (answers[near] != answers[sample])
                others &= (images[near] != images[sample]) | (images[sample] == 0)
                kept = near[others][:num_ranks]
                found[sample, : len(kept)] = kept
    return found


def _alike(
    sides: Sequence[Embedded], owners: NDArray[np.int64], number: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a key of each sample's images and of its answers; 0 for no image."""
    import numpy as np

    starts = np.searchsorted(owners, np.arange(number))
    answers = np.split(sides[1].content_ids, starts[1:])
    keys = [stable_id(*map(str, each.tolist())) for each in answers]
    return sides[0].image_ids[starts], np.asarray(keys, dtype=np.int64)


def _most_equal(keys: NDArray[np.int64]) -> int:
    """Return how often the most frequent key comes."""
    import numpy as np

    return int(np.unique(keys, return_counts=True)[1].max(initial=0))


def _means(vectors: Vectors, owners: NDArray[np.int64], number: int, file: Path) -> Vectors:
    """Return one vector a sample, unit length; beside the store where a sample has several."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from muco.evaluation.search.vectors import TensorVectors

    if len(owners) == number:
        return vectors
    means = np.memmap(file, dtype=np.float32, mode="w+", shape=(number, vectors.dim))
    for first in range(0, number, _QUERIES):
        stop = min(first + _QUERIES, number)
        begin, end = np.searchsorted(owners, [first, stop])
        np.add.at(means[first:stop], owners[begin:end] - first, vectors.block(int(begin), int(end)).numpy())
    whole = TensorVectors(torch.from_numpy(means))
    for first in range(0, number, _QUERIES):
        block = whole.block(first, min(first + _QUERIES, number))
        means[first : first + len(block)] = F.normalize(block, dim=1).numpy()
    return whole


def _write_negatives(
    reader: ShardReader, graph: NeighbourGraph, folder: Path, range_min: int, number: int
) -> None:
    """Write the samples again, each pair with answers of its sample's neighbours as hard negatives.

    Nearest first, from rank `range_min` on; beside the shards goes their graph.
    """
    from muco.data.shards.reader import ShardReader
    from muco.data.shards.writer import write_shards

    metadata: dict[str, Any] = {
        **reader.index.metadata,
        "negatives": {"teacher": graph.teacher, "data": graph.data, "range_min": range_min, "number": number},
    }

    def samples() -> Iterator[Sample]:
        for place in range(len(reader)):
            sample = reader[place]
            near = [reader[int(row)] for row in graph.neighbours[place, range_min:] if row >= 0]
            pairs = tuple(
                replace(pair, negatives=(*pair.negatives, *islice(_wrong(pair, turn, near), number)))
                for turn, pair in enumerate(sample.pairs)
            )
            yield replace(sample, pairs=pairs)

    write_shards(samples(), folder, metadata=metadata)
    # The positions are the same, and the sampler wants a graph of the very data that it plans.
    data = ShardReader(folder).index.fingerprint
    NeighbourGraph(graph.neighbours, data, graph.teacher).write(folder.with_suffix(".safetensors"))


def _wrong(pair: Pair, turn: int, near: Sequence[Sample]) -> Iterator[Content]:
    """Yield the neighbours' answers to the same question that are no answer of this pair, each once."""
    seen = {pair.target, *pair.negatives}
    for other in near:
        same = [each for each in other.pairs if each.task == pair.task]
        answer = (same[0] if same else other.pairs[min(turn, len(other.pairs) - 1)]).target
        if answer not in seen:
            seen.add(answer)
            yield answer
