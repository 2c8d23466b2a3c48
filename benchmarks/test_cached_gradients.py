"""Cached gradients against a plain step; peak memory as the batch grows.

pytest benchmarks/test_cached_gradients.py
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.peak import resident_mib
from benchmarks.steps import encoder_of, samples, step_of
from muco.training.memory import peak_bytes

SMALL = {"hidden_dim": 128, "num_layers": 4, "vision_dim": 64, "vision_layers": 2, "vision_heads": 2}
TOWER = {"hidden_dim": 64, "num_layers": 1, "vision_dim": 256, "vision_layers": 12, "vision_heads": 4}
"""A vision tower that dominates: 256 patches an image through twelve layers of four times the width."""


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_a_step_at_a_batch_that_fits(benchmark, cached):
    encoder = encoder_of({"min_pixels": 56**2, "max_pixels": 56**2}, SMALL)
    data = samples(32, turns=7, side_pixels=56, lengths=[12])
    step, _ = step_of(encoder, data, cached=cached, chunk_tokens=1024)
    benchmark.pedantic(step, rounds=7, warmup_rounds=2)


@pytest.mark.parametrize("way", ["plain", "cached", "cached_without_keeping"])
def test_a_frozen_vision_tower_that_dominates(benchmark, way, monkeypatch):
    settings = {"min_pixels": 224**2, "max_pixels": 224**2, "freeze_vision": True}
    encoder = encoder_of(settings, TOWER)
    data = samples(8, turns=7, side_pixels=224, lengths=[12])
    if way == "cached_without_keeping":
        # As if a weight of the tower were trained: its features are made again in the second pass.
        monkeypatch.setattr(type(encoder.backbone), "image_parameters", lambda self: self.parameters())
    step, _ = step_of(encoder, data, cached=way != "plain", chunk_tokens=512)
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


PEAK = """
from benchmarks.steps import *
encoder = encoder_of({{"min_pixels": 56**2, "max_pixels": 56**2}}, {random_init})
data = samples({number}, turns=7, side_pixels=56, lengths=[12])
go = step_of(encoder, data, cached={cached}, chunk_tokens=4096)[0]
"""


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_peak_memory_at_8_times_the_batch(benchmark, cached):
    encoder = encoder_of({"min_pixels": 56**2, "max_pixels": 56**2}, SMALL)
    tensors, resident = {}, {}
    for number in (64, 512):
        data = samples(number, turns=7, side_pixels=56, lengths=[12])
        step, _ = step_of(encoder, data, cached=cached, chunk_tokens=4096)
        step()
        tensors[number] = peak_bytes(torch.device("cpu"), step) / 2**20
        _, resident[number] = resident_mib(
            PEAK.format(random_init=SMALL, cached=cached, number=number), "go()"
        )
    benchmark.pedantic(lambda: None)
    told = {"tensors": tensors, "resident": resident}
    for name, found in told.items():
        benchmark.extra_info |= {f"{name}_mib_of_{number}": mib for number, mib in found.items()}
        print(f"\n{name}: {found[64]:.0f} MiB, {found[512]:.0f} MiB, ratio {found[512] / found[64]:.2f}")
