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
"""The vision tower takes most of the time: 256 patches an image, twelve layers, four times as wide."""


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_a_step_of_several_chunks(benchmark, cached):
    encoder = encoder_of({"min_pixels": 56**2, "max_pixels": 56**2}, SMALL)
    data = samples(32, turns=7, side_pixels=56, lengths=[12])
    step, _ = step_of(encoder, data, grad_cache=cached, chunk_tokens=1024)
    benchmark.pedantic(step, rounds=7, warmup_rounds=2)


@pytest.mark.parametrize("way", ["plain", "cached", "cached_computed_twice"])
def test_a_frozen_vision_tower_that_dominates(benchmark, way, monkeypatch):
    settings = {"min_pixels": 224**2, "max_pixels": 224**2, "freeze_vision": True}
    encoder = encoder_of(settings, TOWER)
    data = samples(8, turns=7, side_pixels=224, lengths=[12])
    if way == "cached_computed_twice":
        # As if a weight of the tower were trained: the second pass computes its features again.
        monkeypatch.setattr(type(encoder.backbone), "image_parameters", lambda self: self.parameters())
    step, _ = step_of(encoder, data, grad_cache=way != "plain", chunk_tokens=512)
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


PEAK = """
from benchmarks.steps import *
encoder = encoder_of({{"min_pixels": 56**2, "max_pixels": 56**2}}, {random_init})
data = samples({number}, turns=7, side_pixels=56, lengths=[12])
step = step_of(encoder, data, grad_cache={cached}, chunk_tokens=4096)[0]
"""


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_peak_memory_at_8_times_the_batch(benchmark, cached):
    encoder = encoder_of({"min_pixels": 56**2, "max_pixels": 56**2}, SMALL)
    tensors, resident = {}, {}
    for number in (64, 512):
        data = samples(number, turns=7, side_pixels=56, lengths=[12])
        step, _ = step_of(encoder, data, grad_cache=cached, chunk_tokens=4096)
        step()
        tensors[number] = peak_bytes(torch.device("cpu"), step) / 2**20
        _, resident[number] = resident_mib(
            PEAK.format(random_init=SMALL, cached=cached, number=number), "step()"
        )
    benchmark.pedantic(lambda: None)
    for name, mib in {"tensors": tensors, "resident": resident}.items():
        benchmark.extra_info |= {f"{name}_mib_of_{number}": mib[number] for number in mib}
        print(f"\n{name}: {mib[64]:.0f} MiB, {mib[512]:.0f} MiB, ratio {mib[512] / mib[64]:.2f}")
