"""Training steps on generated samples, for benchmarks."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from PIL import Image

from muco.core import Content, EncodedImage, Loss, Pair, Sample, TurnEncoder
from muco.core.packer import Packer
from muco.data.shards.reader import ShardReader
from muco.distributed.ranks import Ranks
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.poolers.turn_token import TurnToken
from muco.plugins.samplers.mixture import Mixture
from muco.training.batches import StepBatches
from muco.training.step import Stepper

ISOLATED = MultiTurn(MultiTurn.Config(context="isolated", system=""))


class Samples(list[Sample]):
    """Samples in memory with the interface of a `ShardReader`."""

    def name(self, index: int) -> str:
        """Return the sample's name."""
        return self[index].sample_id


def text(num_tokens: int, *seed: object) -> str:
    """Return a text of `num_tokens` bytes; the benchmarks' tokenizer makes a token of each."""
    return "".join(random.Random(str(seed)).choices("abcdefgh", k=num_tokens))


def noise(side_pixels: int, seed: int) -> EncodedImage:
    """Return a square picture of noise."""
    buffer = io.BytesIO()
    Image.effect_noise((side_pixels, side_pixels), 50 + seed % 50).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue())


def samples(number: int, *, turns: int, side_pixels: int, lengths: Sequence[int]) -> Samples:
    """Return samples of one picture (none if `side_pixels` is 0) whose texts take `lengths` in turn."""
    made = Samples()
    for index in range(number):
        pairs = tuple(
            Pair(
                f"t{turn}",
                (Content(text(lengths[(index + turn) % len(lengths)], index, turn)),),
                Content(text(lengths[(index + turn) % len(lengths)], turn, index, "target")),
            )
            for turn in range(turns)
        )
        images = (noise(side_pixels, index),) if side_pixels else ()
        made.append(Sample(str(index), "made", images, pairs))
    return made


def config_of(settings: Mapping[str, Any], random_init: Mapping[str, Any]) -> Any:
    """Return the settings of a Qwen2-VL with random weights whose tokens are bytes."""
    values = {"template": "bare", **settings, "random_init": {"vocab_size": 265, **random_init}}
    return QwenVL.Config.model_validate(values)


def encoder_of(settings: Mapping[str, Any], random_init: Mapping[str, Any]) -> TurnEncoder:
    """Return a Qwen2-VL of `config_of`."""
    torch.manual_seed(0)
    backbone = QwenVL.build(config_of(settings, random_init), texts=["a"])
    return TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=backbone.hidden_dim)).train()


def step_of(
    encoder: TurnEncoder,
    data: Samples,
    *,
    packer: Packer = ISOLATED,
    loss: Loss | None = None,
    grad_cache: bool = False,
    chunk_tokens: int | None = None,
    ranks: Ranks | None = None,
    **stepper: Any,
) -> tuple[Callable[[], None], Any]:
    """Return a function that computes the gradients of a step over all samples, and the step's inputs."""
    ranks = ranks or Ranks()
    batches = StepBatches(
        readers={"made": cast(ShardReader, data)},
        sampler=Mixture(Mixture.Config()),
        packer=packer,
        processor=encoder.backbone.processor,
        global_batch_size=len(data),
        seed=0,
        chunk_tokens=chunk_tokens,
        rank=ranks.rank,
        num_ranks=ranks.world_size,
    )
    inputs = batches[0]
    device = next(encoder.parameters()).device
    loss = loss or MultiTurnInfoNCE(MultiTurnInfoNCE.Config())
    stepper = {"grad_cache": grad_cache, "held_tokens": chunk_tokens or 0, **stepper}
    compute_gradients = Stepper(encoder, loss, device, ranks, **stepper)

    def step() -> None:
        encoder.zero_grad()
        compute_gradients(inputs)

    return step, inputs
