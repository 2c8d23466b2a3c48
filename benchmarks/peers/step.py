"""A training step of muco beside one of sentence-transformers: the same weights, images and texts.

    OMP_NUM_THREADS=1 python -m benchmarks.peers.step --images 8      # needs muco[st]; CPU time
    OMP_NUM_THREADS=1 python -m benchmarks.peers.step --images 8 --memory

A step is forward, loss and backward over `--images` pictures with seven pairs each; the inputs are prepared
before. The peers are MultipleNegativesRankingLoss, which has seven single-turn pairs an image, and for cached
gradients CachedMultipleNegativesRankingLoss, with as many tokens a chunk.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.peak import resident_mib
from benchmarks.peers.encode import BACKBONE, WORDS, text
from benchmarks.steps import ISOLATED, Samples, noise, step_of
from muco.commands.export import export
from muco.config.load import validate_settings
from muco.config.recipe import Evaluation
from muco.core import Content, Pair, Sample, TurnEncoder
from muco.model.build import build_encoder
from muco.model.folder import save_encoder
from muco.model.source import find_model
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.single_turn import SingleTurn

SIDE_PIXELS, NUM_TURNS, CHUNK_TOKENS = 224, 7, 2048
SINGLE = SingleTurn(SingleTurn.Config(turns="all", system=""))
CACHED: dict[str, Any] = {"grad_cache": True, "chunk_tokens": CHUNK_TOKENS}
STEPS: dict[str, dict[str, Any]] = {
    f"{packing}{cached}": {"packer": packer, **options}
    for packing, packer in (("single-turn", SINGLE), ("multi-turn", ISOLATED))
    for cached, options in (
        ("", {}),
        (", cached", CACHED),
        (", cached, all held", {**CACHED, "held_tokens": 2**31}),
    )
}
"""All held: as with `train.held_tokens: auto` where the memory suffices; one chunk is held otherwise."""
PEERS = {"sentence-transformers": False, "sentence-transformers, cached": True}
"""By name, whether gradients are cached."""


def data_of(num_images: int) -> Samples:
    """Return pictures with seven questions of one to ten words and answers of one to six."""
    rng = random.Random(0)
    made = Samples()
    for index in range(num_images):
        pairs = tuple(
            Pair(f"t{turn}", (Content(text(rng.randint(1, 10), rng)),), Content(text(rng.randint(1, 6), rng)))
            for turn in range(NUM_TURNS)
        )
        made.append(Sample(str(index), "made", (noise(SIDE_PIXELS, index),), pairs))
    return made


def export_model(folder: Path) -> Path:
    """Write a model with random weights in the layout of transformers; return its folder."""
    packer = {"name": "single_turn", "system": ""}
    values = {"name": "x", "packer": packer, "backbone": BACKBONE, "pooler": "last_token", "evaluate": {}}
    settings = validate_settings(Evaluation, values, title="benchmark").model
    save_encoder(build_encoder(settings, texts=WORDS * 4, seed=0), settings, folder / "model", step=1)
    return export(str(folder / "model"), folder / "exported", check=False)


def encoder_of(folder: Path) -> TurnEncoder:
    """Return the encoder of an exported model."""
    source = find_model(str(folder))
    return source.load(source.evaluation("benchmark").model).encoder.train()


def peer_of(
    folder: Path, data: Samples, *, cached: bool
) -> tuple[Callable[[], None], Any, list[Mapping[str, Any]]]:
    """Return the peer's step, its model and its inputs."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    model = SentenceTransformer(str(folder), device="cpu").train()
    scale = 1 / MultiTurnInfoNCE.Config().temperature
    if cached:
        loss = losses.CachedMultipleNegativesRankingLoss(
            model, scale=scale, mini_batch_num_tokens=CHUNK_TOKENS
        )
    else:
        loss = losses.MultipleNegativesRankingLoss(model, scale=scale)
    queries = [
        {"image": sample.images[0].decode(), "text": pair.queries[0].text}
        for sample in data
        for pair in sample.pairs
    ]
    targets = [pair.target.text for sample in data for pair in sample.pairs]
    inputs: list[Mapping[str, Any]] = [model.preprocess(queries), model.preprocess(targets)]

    def step() -> None:
        model.zero_grad()
        loss([dict(each) for each in inputs], torch.empty(0)).backward()

    return step, model, inputs


def compare_vectors(encoder: TurnEncoder, data: Samples, model: Any, inputs: list[Mapping[str, Any]]) -> None:
    """Raise AssertionError if the two sides do not compute the same vectors of the queries."""
    _, ours = step_of(encoder, data, packer=SINGLE)
    with torch.no_grad():
        theirs = model(dict(inputs[0]))["sentence_embedding"]
        made = torch.cat([encoder(chunk).vectors for chunk in ours.queries.chunks])[ours.queries.row_index]
    # The step's order is shuffled; each of the peer's vectors must be the nearest of one of ours.
    cosines = (theirs / theirs.norm(dim=1, keepdim=True)) @ made.T
    assert cosines.amax(1).min() > 0.9999, cosines.amax(1).min()


def measure_time(
    folder: Path, data: Samples, rounds: int, names: list[str], clock: Callable[[], float]
) -> None:
    """Print the median CPU time of each step, and how many times faster it is than each peer's."""
    encoder = encoder_of(folder)
    steps: dict[str, Callable[[], None]] = {}
    for name, cached in PEERS.items():
        steps[name], model, inputs = peer_of(folder, data, cached=cached)
    compare_vectors(encoder, data, model, inputs)
    steps |= {name: step_of(encoder, data, **STEPS[name])[0] for name in names}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    medians = {name: statistics.median(each[1:]) for name, each in times.items()}  # the first warms up
    for name, seconds in medians.items():
        ratios = " ".join(f"{medians[peer] / seconds:6.2f}" for peer in PEERS)
        print(f"{name:<29} {seconds:8.2f} s {ratios}", flush=True)


def measure_memory(folder: Path, num_images: int, names: list[str]) -> None:
    """Print the peak resident memory that two steps add, each in a process of its own."""
    added: dict[str, float] = {}
    imports = "from benchmarks.peers.step import *"
    setup = f"{imports}; folder, data = Path({str(folder)!r}), data_of({num_images})"
    peer = next(iter(PEERS))
    for name in (*PEERS, *names):
        if name in PEERS:
            made = f"step = peer_of(folder, data, cached={PEERS[name]})[0]"
        else:
            made = f"step = step_of(encoder_of(folder), data, **STEPS[{name!r}])[0]"
        start, peak = resident_mib(f"{setup}; {made}", "step(); step()")
        added[name] = peak - start
        share = added[name] / added[peer]
        print(f"{name:<29} {peak:8.0f} MiB, {added[name]:6.0f} added, {share:5.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=STEPS)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--wall", action="store_true", help="measure wall time, for several threads")
    arguments = parser.parse_args()
    names = arguments.only or list(STEPS)
    with TemporaryDirectory() as folder:
        exported = export_model(Path(folder))
        if arguments.memory:
            measure_memory(exported, arguments.images, names)
        else:
            clock = time.perf_counter if arguments.wall else time.process_time
            measure_time(exported, data_of(arguments.images), arguments.rounds, names, clock)


if __name__ == "__main__":
    main()
