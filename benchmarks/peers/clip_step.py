"""A training step of muco's `clip` beside one of open_clip: the same weights, images and captions.

    OMP_NUM_THREADS=1 python -m benchmarks.peers.clip_step              # CPU time; or --wall

A step is forward, the symmetric loss and backward over pairs of an image and a caption of two to twelve
words; the inputs are prepared before. Both losses are compared first.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch

from benchmarks.peers.encode import WORDS, text
from benchmarks.steps import Samples, noise, step_of
from muco.core import Content, Pair, Sample, TurnEncoder
from muco.plugins.backbones.clip import Clip
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.single_turn import SingleTurn
from muco.plugins.poolers.turn_token import TurnToken
from muco.training.step import Stepper

SIDE_PIXELS, TEMPERATURE = 112, 0.07
SIZES = {
    "embedding_dim": 256,
    "image_size_pixels": SIDE_PIXELS,
    "patch_size_pixels": 14,
    "vision_dim": 256,
    "vision_layers": 6,
    "text_dim": 256,
    "text_layers": 6,
    "context_length": 77,
}
"""A small ViT, and the context of CLIP."""


def data_of(num_pairs: int) -> Samples:
    """Return pairs of a picture and a caption."""
    rng = random.Random(0)
    made = Samples()
    for index in range(num_pairs):
        caption = Content(text(rng.randint(2, 12), rng))
        image = noise(SIDE_PIXELS, index)
        pair = Pair("caption", (Content("", (image,)),), caption)
        made.append(Sample(str(index), "made", (image,), (pair,)))
    return made


def ours(folder: Path, data: Samples) -> tuple[Callable[[], None], Callable[[], float]]:
    """Return muco's step, and what computes its loss."""
    backbone = Clip.build(Clip.Config(pretrained=str(folder)), texts=())
    pooler = TurnToken(TurnToken.Config(), hidden_dim=backbone.hidden_dim)
    encoder = TurnEncoder(backbone, pooler).train()
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=TEMPERATURE, symmetric=True))
    packer = SingleTurn(SingleTurn.Config(system=""))
    step, inputs = step_of(encoder, data, packer=packer, loss=loss)
    stepper = Stepper(encoder, loss, torch.device("cpu"))
    return step, lambda: stepper(inputs).mean


def theirs(folder: Path, data: Samples) -> tuple[Callable[[], None], Callable[[], float]]:
    """Return open_clip's step, and what computes its loss."""
    name = f"local-dir:{folder}"
    model, transform = open_clip.create_model_from_pretrained(name)
    tokenizer, loss = open_clip.get_tokenizer(name), open_clip.ClipLoss()
    images = torch.stack([transform(sample.images[0].decode()) for sample in data])  # type: ignore[operator]
    texts = tokenizer([sample.pairs[0].target.text for sample in data])
    scale = torch.tensor(1 / TEMPERATURE)
    model.train()

    def compute() -> Any:
        image, caption, _ = model(images, texts)
        return loss(image, caption, scale)

    def step() -> None:
        model.zero_grad()
        compute().backward()

    return step, lambda: compute().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--wall", action="store_true", help="measure wall time, for several threads")
    options = parser.parse_args()
    clock = time.perf_counter if options.wall else time.process_time
    data = data_of(options.pairs)
    with TemporaryDirectory() as name:
        torch.manual_seed(0)
        Clip.build(Clip.Config.model_validate({"random_init": SIZES}), texts=WORDS * 4).save(Path(name))
        steps = {side.__name__: side(Path(name), data) for side in (theirs, ours)}
    losses = {side: loss() for side, (_, loss) in steps.items()}
    assert abs(losses["ours"] - losses["theirs"]) < 1e-4, losses
    times: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(options.rounds + 1):
        for side, (step, _) in steps.items():
            start = clock()
            step()
            times[side].append(clock() - start)
    medians = {side: statistics.median(each[1:]) for side, each in times.items()}  # the first warms up
    for side, seconds in medians.items():
        print(f"{side:<6} {seconds:.3f} s {medians['theirs'] / seconds:.2f} times")


if __name__ == "__main__":
    main()
