"""Every installed component keeps its contract, and takes a step with every backbone that supports it.

A component that is registered and cannot be made from what stands here fails.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muco import testing
from muco.core import TurnEncoder
from muco.core.compatibility import missing_in
from muco.core.component import KINDS, Kind
from muco.data.shards.reader import ShardReader
from muco.io.neighbor_graph import NeighbourGraph
from muco.plugins.samplers.mixture import Mixture
from muco.training.batches import StepBatches
from muco.training.step import Stepper
from tests.helpers import eval_files, outside_data
from tests.helpers.backbones import BACKBONES, REGISTRY
from tests.helpers.small import TEXTS, picture

SETTINGS: dict[tuple[Kind, str], dict[str, Any]] = {
    ("source", "scenes"): {"num_samples": 12},
    ("sampler", "task_homogeneous"): {"run_length": 2},
    ("packer", "multi_turn"): {"context": "isolated"},
    ("loss", "matryoshka"): {"loss": "multiturn_infonce", "dims": [8, 4]},
    ("suite", "scenes"): {"num_queries": 8},
}
"""Where the defaults do not do."""
CATALOG = {"a": 13, "b": 5}
IMAGES = [picture("red", (56, 56)), picture("blue", (80, 40))]


def names(kind: Kind) -> list[str]:
    return [entry.name for entry in REGISTRY.entries(kind)]


def a_table(folder: Path) -> dict[str, Any]:
    outside_data.write_files(folder, {name: outside_data.image_bytes(1) for name in ("a.jpg", "b.jpg")})
    outside_data.write_jsonl(folder / "mine.jsonl", outside_data.PAIRS_ROWS)
    return {"path": str(folder / "mine.jsonl"), "columns": outside_data.PAIRS_COLUMNS}


def graphs(folder: Path) -> dict[str, Any]:
    """Say that the next ones in the circle are near."""
    for name, size in CATALOG.items():
        rows = (np.arange(size)[:, None] + np.arange(1, 5)) % size
        graph = NeighbourGraph(rows.astype(np.int32), data=name, teacher="a model")
        graph.write(folder / f"{name}.safetensors")
    files = {name: str(folder / f"{name}.safetensors") for name in CATALOG}
    return {"graphs": files, "range_min": 1, "range_max": 4, "community_size": 2}


def files(write: Callable[[Path], None], field: str) -> Callable[[Path], dict[str, Any]]:
    def made(folder: Path) -> dict[str, Any]:
        write(folder)
        return {field: str(folder)}

    return made


ON_DISK: dict[tuple[Kind, str], Callable[[Path], dict[str, Any]]] = {
    ("source", "m3t"): files(outside_data.write_m3t, "path"),
    ("source", "mmeb"): files(outside_data.write_mmeb, "path"),
    ("source", "mbeir"): files(outside_data.write_mbeir, "path"),
    ("source", "pairs"): a_table,
    ("sampler", "mined"): graphs,
    ("suite", "mmeb"): files(lambda folder: eval_files.write_mmeb(folder, ["VOC2007", "CIRR"]), "data"),
    ("suite", "mbeir"): files(eval_files.write_mbeir, "data"),
    ("suite", "pairs"): files(eval_files.write_pairs, "data"),
}
"""What reads files: writes them and returns its settings."""


ELSEWHERE = {("backbone", name) for name in names("backbone")} | {("suite", "mteb")}
"""Backbones have a check of their own below, `mteb` in tests/integrations."""


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in names(kind) if (kind, name) not in ELSEWHERE],
)
def test_every_component_keeps_its_contract(shards, tmp_path, kind: Kind, name):
    needed = (kind, name)
    settings = ON_DISK[needed](tmp_path) if needed in ON_DISK else SETTINGS.get(needed, {})
    met: dict[str, Any] = {}
    if kind == "sampler":
        met["catalog"] = CATALOG
    elif kind == "packer":
        met["samples"] = list(islice(ShardReader(shards), 12))
    getattr(testing, f"check_{kind}")(REGISTRY, name, settings, **met)


@pytest.mark.parametrize("family", BACKBONES)
def test_every_backbone_keeps_its_contract(tmp_path, family):
    name, settings = BACKBONES[family]
    testing.check_backbone(REGISTRY, name, settings, texts=TEXTS, images=IMAGES, folder=tmp_path)


def part(kind: str, name: str):
    cls = REGISTRY.component(kind, name)
    return cls, cls.Config.model_validate(SETTINGS.get((kind, name), {}))


@cache
def backbone_of(family: str):
    name, settings = BACKBONES[family]
    cls = REGISTRY.component("backbone", name)
    config = cls.Config.model_validate(settings)
    torch.manual_seed(0)
    return cls, config, cls.build(config, texts=[*TEXTS, "Rewrite the response."])


def supported(family: str, **chosen: str) -> bool:
    cls, config, _ = backbone_of(family)
    return not missing_in({"backbone": (cls, config), **{k: part(k, name) for k, name in chosen.items()}})


def take_a_step(shards: Path, family: str, *, packer: str, pooler: str, loss: str) -> None:
    _, _, backbone = backbone_of(family)
    pooler_cls, pooler_config = part("pooler", pooler)
    encoder = TurnEncoder(backbone, pooler_cls(pooler_config, hidden_dim=backbone.hidden_dim)).train()
    encoder.zero_grad()
    packer_cls, packer_config = part("packer", packer)
    loss_cls, loss_config = part("loss", loss)
    batches = StepBatches(
        readers={"scenes": ShardReader(shards)},
        sampler=Mixture(Mixture.Config()),
        packer=packer_cls(packer_config),
        processor=backbone.processor,
        global_batch_size=4,
        seed=0,
        chunk_tokens=600,
    )
    inputs = batches[0]
    assert not inputs.unreadable
    done = Stepper(encoder, loss_cls(loss_config), torch.device("cpu"), grad_cache=True)(inputs)
    gradients = [weight.grad for weight in encoder.parameters() if weight.grad is not None]
    assert done.num_turns
    assert torch.isfinite(torch.tensor(done.mean))
    assert all(torch.isfinite(each).all() for each in gradients)
    assert any(each.any() for each in gradients)


@pytest.mark.parametrize(
    ("family", "packer", "loss"), list(product(BACKBONES, names("packer"), names("loss")))
)
def test_every_packer_and_loss_with_every_backbone(shards, family, packer, loss):
    if supported(family, packer=packer, loss=loss):
        take_a_step(shards, family, packer=packer, pooler="turn_token", loss=loss)
    else:
        assert family == "clip", "a decoder takes them all"
        assert packer == "reconstruction"


@pytest.mark.parametrize(("family", "pooler"), list(product(BACKBONES, names("pooler"))))
def test_every_pooler_with_every_backbone(shards, family, pooler):
    take_a_step(shards, family, packer="multi_turn", pooler=pooler, loss="multiturn_infonce")
