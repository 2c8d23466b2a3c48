"""Samples a second out of shards, decoded, in two workers: muco's reader against plain webdataset.

    pytest benchmarks/test_reading.py

Both read the same shards of photograph-sized noise, parse the record, decode every image to RGB, and shuffle:
webdataset by shard and in a buffer of 512 samples, muco by a plan in windows of 512. They run in turn, seven
rounds, and the median of the ratios counts: the machine may be busy.
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from muco.core import Content, EncodedImage, Pair, Sample
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.plugins.samplers.mixture import Mixture

NUM_SAMPLES, BATCH, WINDOW, WORKERS = 6144, 32, 512, 2
ROUNDS = 7
MIN_RATIO = 0.95
"""Of muco's samples a second to webdataset's."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    import io

    rng = np.random.default_rng(0)
    samples = []
    for number in range(NUM_SAMPLES):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        pairs = tuple(
            Pair(
                f"t{turn}", (Content(f"question {turn} of {number}"),), Content(f"answer {turn} of {number}")
            )
            for turn in range(7)
        )
        samples.append(Sample(str(number), "noise", (EncodedImage(buffer.getvalue()),), pairs))
    folder = tmp_path_factory.mktemp("photos") / "shards"
    write_shards(samples, folder, metadata={}, max_shard_bytes=8 * 2**20)
    return folder


class Planned(Dataset[int]):
    """Item `position` is the number of pixels of that batch of the epoch."""

    def __init__(self, folder: Path) -> None:
        self.reader = ShardReader(folder)
        self.sampler = Mixture(Mixture.Config(window=WINDOW))

    def __len__(self) -> int:
        return self.sampler.num_batches({"a": len(self.reader)}, batch_size=BATCH)

    def __getitem__(self, position: int) -> int:
        plan = self.sampler.plan(
            {"a": len(self.reader)}, batch_size=BATCH, seed=0, epoch=0, position=position
        )
        samples = [self.reader[ref.index] for ref in plan.samples]
        return sum(pixels_of(sample.images[0].decode()) for sample in samples)


def pixels_of(image: Image.Image) -> int:
    image.load()
    return image.width * image.height


def ours(folder: Path) -> tuple[int, float]:
    loader = DataLoader(Planned(folder), batch_size=None, num_workers=WORKERS)
    began = time.perf_counter()
    return sum(loader), time.perf_counter() - began


def theirs(folder: Path) -> tuple[int, float]:
    def one(record: dict) -> int:
        assert json.loads(record["json"])["pairs"]
        return pixels_of(record["0.jpg"].convert("RGB"))

    pipeline = (
        webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=100, seed=0)
        .shuffle(WINDOW)
        .decode(webdataset.imagehandler("pil", ["jpg"]), only=["0.jpg"])
        .map(one)
        .batched(BATCH, collation_fn=sum)
    )
    loader = DataLoader(pipeline, batch_size=None, num_workers=WORKERS)
    began = time.perf_counter()
    return sum(loader), time.perf_counter() - began


def test_samples_per_second_beside_webdataset(photos):
    expected = NUM_SAMPLES * 512 * 384
    seconds: dict[str, list[float]] = {"ours": [], "webdataset": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset's own
        for _ in range(ROUNDS):
            for name, side in (("ours", ours), ("webdataset", theirs)):
                pixels, taken = side(photos)
                assert pixels == expected
                seconds[name].append(taken)
    rates = {name: NUM_SAMPLES / np.median(each) for name, each in seconds.items()}
    ratio = float(np.median(np.divide(seconds["webdataset"], seconds["ours"])))
    print(f"\nsamples a second: {rates}; ratio {ratio:.2f}")
    assert ratio >= MIN_RATIO


def test_the_first_batch_after_resuming_costs_the_same_at_any_step(photos, benchmark):
    """Promise 4: resuming reads nothing of the steps before."""
    planned = Planned(photos)

    def first_batch(step: int) -> float:
        start = time.perf_counter()
        epoch, position = divmod(step, len(planned))
        plan = planned.sampler.plan(
            {"a": len(planned.reader)}, batch_size=BATCH, seed=0, epoch=epoch, position=position
        )
        for ref in plan.samples:
            planned.reader[ref.index]
        return time.perf_counter() - start

    def medians() -> dict[int, float]:
        return {step: float(np.median([first_batch(step) for _ in range(9)])) for step in (10, 1_000_000)}

    seconds = benchmark.pedantic(medians, rounds=3, warmup_rounds=1)
    print(f"\nmilliseconds to the first batch: {1000 * seconds[10]:.2f} at step 10, ", end="")
    print(f"{1000 * seconds[1_000_000]:.2f} at step 1,000,000")
    assert seconds[1_000_000] < 2 * seconds[10]
