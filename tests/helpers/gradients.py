"""The gradients of one step, with small models and ragged samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch.distributed.tensor import DTensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.modeling_qwen2_vl import rotate_half
from transformers.models.qwen3_vl import modeling_qwen3_vl

from muco.core import TurnEncoder
from muco.core.sample import Content, Pair, Sample
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.distributed.fsdp import Shards
from muco.distributed.ranks import Ranks
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.poolers.turn_token import TurnToken
from muco.plugins.samplers.mixture import Mixture
from muco.training.batches import StepBatches
from muco.training.step import Stepper
from tests.helpers.small import SMALL, TEXTS, picture

ONE_PROCESS, CPU = Ranks(), torch.device("cpu")
LONG = "where is it? " * 6


def ragged(folder: Path) -> ShardReader:
    """Return samples of one to four turns, with and without image, some with hard negatives."""
    samples = []
    for number in range(7):
        pairs = tuple(
            Pair(
                f"task{turn}",
                (Content(f"{LONG if turn == 1 else 'what'} {number}"),),
                Content(f"a {number} {turn}" if turn else "red"),
                (Content(f"not {number}", (picture("blue", (60, 60)),)),)
                if number == 2 and turn == 0
                else (),
            )
            for turn in range(1 + number % 4)
        )
        images = (picture("red", (56 + 28 * (number % 3), 56)),) if number % 3 else ()
        samples.append(Sample(f"{number}", "ragged", images, pairs))
    write_shards(samples, folder, metadata={})
    return ShardReader(folder)


def encoder(*, lora: bool = False, **options: object) -> TurnEncoder:
    torch.manual_seed(0)
    config = QwenVL.Config.model_validate({**SMALL, **options})
    backbone = QwenVL.build(config, texts=TEXTS)
    if lora:
        for weight in backbone.parameters():
            weight.requires_grad = False
        adapter = LoraConfig(
            r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], init_lora_weights=False
        )
        inject_adapter_in_model(adapter, backbone.model.language_model)
    return TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=backbone.hidden_dim)).train()


def exact(model: TurnEncoder) -> TurnEncoder:
    """Let norms and vision towers compute in the dtype of the weights.

    In transformers, RMS norms, and the rotation by positions in the vision towers, are in float32.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_rms_norm, module)
        elif type(module).__name__.endswith("VisionAttention"):
            module.forward = partial(_rotate_exactly, module.forward)
    return model


def _rms_norm(norm: Any, states: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate_exactly(forward: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    def rotate(query: Any, key: Any, cos: Any, sin: Any) -> tuple[Any, Any]:
        cos, sin = cos[..., None, :].to(query.dtype), sin[..., None, :].to(query.dtype)
        return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin

    with ExitStack() as patches:
        for module in (modeling_qwen2_vl, modeling_qwen2_5_vl, modeling_qwen3_vl):
            patches.enter_context(patch.object(module, "apply_rotary_pos_emb_vision", rotate))
        return forward(*args, **arguments)


def make_step(
    model: TurnEncoder,
    reader: ShardReader,
    *,
    cached: bool,
    budget: int | None,
    context: str = "isolated",
    dtype: torch.dtype | None = torch.float64,
    ranks: Ranks = ONE_PROCESS,
    num_samples: int = 7,
    sharded: bool = False,
    by_layer: bool = False,
    held_tokens: int = 0,
) -> tuple[Stepper, StepBatches]:
    """Return what computes the gradients of a step, and the batches.

    Args:
        model: it is copied.
        dtype: of the copy's weights; None leaves each weight's dtype.
        by_layer: with `sharded`: gather one layer at a time.
    """
    model = exact(copy.deepcopy(model).to(dtype))
    shards = Shards.of(model, ranks, CPU, by_layer=by_layer) if sharded else Shards()
    assert sharded == any(isinstance(weight, DTensor) for weight in model.parameters())
    packer = MultiTurn(MultiTurn.Config(context=context, order="per_sample", system=""))
    batches = StepBatches(
        readers={"ragged": reader},
        sampler=Mixture(Mixture.Config()),
        packer=packer,
        processor=model.backbone.processor,
        global_batch_size=num_samples,
        seed=0,
        chunk_tokens=budget,
        rank=ranks.rank,
        num_ranks=ranks.world_size,
    )
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1, duplicates="mask"))
    return Stepper(model, loss, CPU, ranks, shards, grad_cache=cached, held_tokens=held_tokens), batches


def gradients(
    model: TurnEncoder, reader: ShardReader, **options: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of a step by the names of the weights; `options` of `make_step`."""
    stepper, batches = make_step(model, reader, **options)
    torch.manual_seed(7)
    step_loss = stepper(batches[0])
    by_name = {n: w.grad for n, w in stepper.encoder.named_parameters() if w.grad is not None}
    return step_loss.mean, {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in by_name.items()}


def same(actual, expected, tolerance):
    assert actual[0] == pytest.approx(expected[0], abs=tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(actual[1][name], gradient, rtol=0, atol=tolerance, msg=name)
