"""Steps of several processes, with whole and with sharded weights: the weights after them, the memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from muco.config.recipe import TrainSettings
from muco.core import TurnEncoder
from muco.core.errors import MucoError
from muco.data.shards.reader import ShardReader
from muco.distributed import gradients as gradients_module
from muco.distributed.fsdp import Shards, clip_gradients
from muco.distributed.ranks import Ranks
from muco.training.optimizer import Optimizers, make_optimizers
from muco.training.step import Stepper
from tests.helpers.gradients import CPU, encoder, make_step, ragged
from tests.helpers.ranks import Group
from tests.helpers.small import SMALL

MODES = {"whole": {}, "step": {"sharded": True}, "layer": {"sharded": True, "by_layer": True}}
SETTINGS = TrainSettings(
    num_steps=4,
    global_batch_size=7,
    learning_rate=0.01,
    learning_rate_scale={"layers": 0.5},
    max_grad_norm=0.1,
)
MODELS = {
    "full": {},
    "frozen vision": {"freeze_vision": True, "gradient_checkpointing": True},
    "lora": {"adapter": {"rank": 4, "dropout": 0.0, "dora": True}},
}


def model_of(name: str) -> TurnEncoder:
    model = encoder(**MODELS[name]).double()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.02 * torch.randn_like(weight)  # adapters start at zero
    return model


def update(stepper: Stepper, optimizers: Optimizers, inputs: Any) -> float:
    stepper(inputs)
    norm = clip_gradients(optimizers.weights(), SETTINGS.max_grad_norm)
    optimizers.step(inputs.step)
    return float(norm)


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in weights.items()}


def train(name: str, reader: ShardReader, ranks: Ranks, first: str, second: str) -> tuple[list[float], Any]:
    """Return the norms and the weights of four steps: two in a mode, two in another from its checkpoint."""
    model, states, norms = model_of(name), None, []
    for mode, steps in ((first, (0, 1)), (second, (2, 3))):
        stepper, batches = make_step(model, reader, cached=True, budget=90, ranks=ranks, **MODES[mode])
        optimizers = make_optimizers(stepper.encoder, SETTINGS)
        if states is not None:
            optimizers.load_state_dict(states)
        norms += [update(stepper, optimizers, batches[step]) for step in steps]
        states = optimizers.state_dict(keep=True)
        with stepper.shards.full_state_dicts(keep=True):
            model.load_state_dict(copy.deepcopy(stepper.encoder.state_dict()))
    return norms, full_weights(model)


def train_all(ranks: Ranks, folder: Path, runs: list[tuple[str, str, str]]) -> list[Any]:
    gradients_module._BUCKET_NUMEL = 500  # many buckets, whose exchanges overlap with the last chunk's pass
    reader = ShardReader(folder)
    return [train(name, reader, ranks, first, second) for name, first, second in runs]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ragged")
    ragged(folder)
    return folder


@pytest.mark.process
@pytest.mark.parametrize(
    ("world_size", "runs"),
    [
        (2, [("full", "layer", "whole"), ("lora", "whole", "layer"), ("frozen vision", "layer", "step")]),
        (3, [("full", "whole", "layer"), ("lora", "layer", "step")]),
    ],
)
def test_steps_in_any_mode_and_from_its_checkpoint_give_the_weights_of_one_process(
    tmp_path, shards, world_size, runs
):
    group = Group(tmp_path, world_size, train_all, shards, runs)
    reader = ShardReader(shards)
    expected = {name: train(name, reader, Ranks(), "whole", "whole") for name, _, _ in runs}
    assert all(max(norms) > SETTINGS.max_grad_norm for norms, _ in expected.values()), "nothing is clipped"
    for results in group.results():
        for (name, *modes), (norms, weights) in zip(runs, results, strict=True):
            assert norms == pytest.approx(expected[name][0], abs=1e-10)
            for key, weight in expected[name][1].items():
                torch.testing.assert_close(weights[key], weight, rtol=0, atol=1e-9, msg=f"{modes} {key}")


def bytes_here(module: nn.Module) -> int:
    """Return the bytes of a module's weights that this process holds now."""
    weights = module.parameters()
    return sum(each.to_local().nbytes if isinstance(each, DTensor) else each.nbytes for each in weights)


def measure(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Return for each mode the peak bytes of the language model's weights, and the number of gathers."""
    model, measured = deep_encoder(), {}
    for mode in ("step", "layer"):
        stepper, batches = make_step(
            model, ShardReader(folder), cached=True, budget=90, ranks=ranks, **MODES[mode]
        )
        language = stepper.encoder.backbone.language
        at_rest, peaks = bytes_here(language), {"forward": 0, "backward": 0}

        def record(phase: str, language=language, peaks=peaks) -> None:
            peaks[phase] = max(peaks[phase], bytes_here(language))

        for module in language.layers.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda *_, record=record: record("forward"))
                module.register_full_backward_hook(lambda *_, record=record: record("backward"))
        inputs = batches[0]
        with CommDebugMode() as comms:
            stepper(inputs)
        gathers = sum(n for op, n in comms.get_comm_counts().items() if "allgather_base" in str(op))
        num_chunks = ranks.greatest(len(inputs.queries.chunks) + len(inputs.targets.chunks))
        assert bytes_here(language) == at_rest
        measured[mode] = {**peaks, "rest": at_rest, "gathers": gathers, "chunks": num_chunks}
    return measured


def deep_encoder() -> TurnEncoder:
    return encoder(random_init={**SMALL["random_init"], "num_layers": 6})


@pytest.mark.process
def test_a_rank_holds_one_layer_at_a_time_beside_its_shards(tmp_path, shards):
    language = deep_encoder().double().backbone.language
    whole, layer = bytes_here(language), bytes_here(language.layers[0])
    norm = bytes_here(language.norm)
    for measured in Group(tmp_path, 2, measure, shards).results():
        step, by_layer = measured["step"], measured["layer"]
        assert step["forward"] == step["backward"] == whole
        assert by_layer["rest"] == pytest.approx(whole / 2, rel=0.02)
        # The shards of the gathered layer are not counted twice.
        expected = by_layer["rest"] + (layer + norm) / 2
        assert by_layer["forward"] == pytest.approx(expected, rel=0.02)
        assert by_layer["backward"] == pytest.approx(expected, rel=0.02)
        groups = len(language.layers) + 2
        assert step["gathers"] == groups
        # After the passes without gradient, FSDP gathers one group ahead that is not used.
        num_passes = 3 * by_layer["chunks"] - 1  # one chunk is encoded once
        assert 0 <= by_layer["gathers"] - groups * num_passes <= 1


def test_layers_that_some_ranks_would_skip_in_backward_are_refused():
    model = encoder()
    model.backbone.language.layers[0].requires_grad_(False)
    with pytest.raises(MucoError, match="gather_weights: layer needs a trained weight in each layer"):
        Shards.of(model, Ranks(), CPU, by_layer=True)
