"""Samples a second out of shards, decoded, in two workers: muco's reader against plain webdataset.

python benchmarks/peers/reader.py            # needs webdataset

Both read the same shards of photograph-sized noise, parse the record, decode every image to RGB, and
shuffle: webdataset by shard and in a buffer of 512 samples, muco by a plan in windows of 512. They run by
turns. Prints ratios of webdataset to muco: the median of the rounds, in CPU time (with the workers) and in
wall time.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from muco.core import Content, EncodedImage, Pair, Sample
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.plugins.samplers.mixture import Mixture

BATCH, WINDOW, WORKERS, WIDTH, HEIGHT = 32, 512, 2, 512, 384


def write_photos(folder: Path, num_samples: int) -> None:
    """Write shards of samples with one JPEG and seven pairs each."""
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for number in range(num_samples):
        coarse, buffer = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), io.BytesIO()
        photo = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        photo.save(buffer, "JPEG", quality=90)
        pairs = tuple(
            Pair(
                f"t{turn}", (Content(f"question {turn} of {number}"),), Content(f"answer {turn} of {number}")
            )
            for turn in range(7)
        )
        samples.append(Sample(str(number), "noise", (EncodedImage(buffer.getvalue()),), pairs))
    write_shards(samples, folder, metadata={}, max_shard_bytes=8 * 2**20)


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
        return sum(num_pixels(sample.images[0].decode()) for sample in samples)


def num_pixels(image: Image.Image) -> int:
    image.load()
    return image.width * image.height


def read_with_muco(folder: Path) -> int:
    return sum(DataLoader(Planned(folder), batch_size=None, num_workers=WORKERS))


def read_with_webdataset(folder: Path) -> int:
    def one(record: dict) -> int:
        assert json.loads(record["json"])["pairs"]
        return num_pixels(record["0.jpg"].convert("RGB"))

    pipeline = (
        webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=100, seed=0)
        .shuffle(WINDOW)
        .decode(webdataset.imagehandler("pil", ["jpg"]), only=["0.jpg"])
        .map(one)
        .batched(BATCH, collation_fn=sum)
    )
    return sum(DataLoader(pipeline, batch_size=None, num_workers=WORKERS))


def cpu_seconds() -> float:
    """CPU time of this process and of its workers that ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(read: Callable[[Path], int], folder: Path, num_samples: int) -> tuple[float, float]:
    """Return CPU and wall seconds of one epoch; every image must have been decoded."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    assert read(folder) == num_samples * WIDTH * HEIGHT
    return cpu_seconds() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=6144, help="a multiple of 32; 512 at least")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name, "shards")
        write_photos(folder, options.samples)
        reads = (read_with_webdataset, read_with_muco)
        rounds = [[timed(read, folder, options.samples) for read in reads] for _ in range(options.rounds)]
    for clock, name in enumerate(("CPU", "wall")):
        ratio = statistics.median(theirs[clock] / ours[clock] for theirs, ours in rounds)
        print(f"{options.samples:,} samples, {WORKERS} workers; webdataset / muco, {name}: {ratio:.3f}")


if __name__ == "__main__":
    main()
