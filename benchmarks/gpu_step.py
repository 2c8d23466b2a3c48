"""Whole training steps of a Qwen2-VL-2B-sized model with random weights: throughput, utilisation, memory.

    python benchmarks/gpu_step.py                 # on a GPU; on a CPU a small model stands in
    python benchmarks/gpu_step.py --images 64 --chunk-tokens 32768 --json benchmarks/results/h100.json

The usual step has LoRA of rank 64 on the language model, a frozen vision tower, bfloat16 weights and cached
gradients. The table has it for every packer and every attention kernel that runs on the device. The last rows
differ from the usual step in one setting. FLOPs are the model FLOPs of `muco-run --flops`, counted on the
real batch. Products that a step computes again are not counted, so they lower the utilisation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.steps import config_of, encoder_of, samples, step_of
from muco.core import MucoError
from muco.costs.batch import BatchFlops
from muco.costs.tables import peak_flops
from muco.plugins.backbones.decoder.attention.kernels import choose_kernel
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.packers.single_turn import SingleTurn
from muco.run_folder import versions
from muco.training.memory import peak_bytes

TURNS, TEXT_TOKENS = 7, 30

LARGE = {
    "hidden_dim": 1536,
    "num_layers": 28,
    "num_heads": 12,
    "num_kv_heads": 2,
    "mlp_dim": 8960,
    "vision_dim": 1280,
    "vision_layers": 32,
    "vision_heads": 16,
}
SMALL = {
    "hidden_dim": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mlp_dim": 256,
    "vision_layers": 2,
}

PACKERS = {
    "single_turn": SingleTurn(SingleTurn.Config(turns="all", system="")),
    "isolated": MultiTurn(MultiTurn.Config(context="isolated", system="")),
    "causal": MultiTurn(MultiTurn.Config(context="causal", system="")),
}


@dataclass(frozen=True)
class Kind:
    """A kind of step."""

    packer: str = "isolated"
    attention: str = "sdpa"
    rows: str = "packed"
    lora: bool = True
    """Adapters on a frozen model; else all weights of the language model are trained."""
    grad_cache: bool = True
    compiled: bool = False
    """`torch.compile` of the layers of the language model."""

    def __str__(self) -> str:
        parts = (self.packer, self.attention, self.rows, "lora" if self.lora else "full")
        return " ".join(
            [*parts, "cached" if self.grad_cache else "plain", "compiled" * self.compiled]
        ).strip()


@dataclass(frozen=True)
class Figures:
    """What a kind of step reaches."""

    kind: Kind
    pairs_per_second: float
    tokens_per_second: float
    padding_share: float
    tflops: float
    """Model FLOPs a second."""
    utilisation: float | None
    """`tflops` divided by the peak of the device, if it is known."""
    peak_gib: float
    """Peak memory of a step without the weights."""

    def row(self) -> str:
        """Return a line of the table."""
        used = "      -" if self.utilisation is None else f"{self.utilisation:>7.2%}"
        speed = f"{self.pairs_per_second:>9.1f} {self.tokens_per_second:>10,.0f} {self.padding_share:>8.1%}"
        return f"{self.kind!s:<44} {speed} {self.tflops:>9.4f} {used} {self.peak_gib:>6.2f}"


@dataclass(frozen=True)
class Machine:
    """Where the steps run, and their sizes."""

    device: torch.device
    sizes: dict[str, Any] = field(default_factory=lambda: SMALL)
    side_pixels: int = 56
    rank: int = 4

    @classmethod
    def here(cls) -> Machine:
        """Return the GPU with the large model, or the CPU with the small one."""
        if torch.cuda.is_available():
            return cls(torch.device("cuda"), LARGE, 644, 64)
        return cls(torch.device("cpu"))

    @property
    def name(self) -> str:
        """The name of the device."""
        return torch.cuda.get_device_name() if self.half else "cpu, a small model"

    @property
    def half(self) -> bool:
        """Whether weights are bfloat16."""
        return self.device.type == "cuda"

    def kernels(self) -> list[str]:
        """Return the attention kernels that run here."""
        return [name for name in ("flash_varlen", "flex", "sdpa") if self._runs(name)]

    def _runs(self, kernel: Any) -> bool:
        try:
            return choose_kernel(kernel, self.device, half=self.half) == kernel
        except MucoError:
            return False


def kinds(kernels: list[str]) -> Iterator[Kind]:
    """Yield every packer with every kernel, then what differs from the usual step in one setting."""
    usual = Kind(attention=kernels[0])
    yield from (Kind(packer, kernel) for packer in PACKERS for kernel in kernels)
    yield replace(usual, rows="padded", attention="sdpa")
    yield replace(usual, lora=False)
    yield replace(usual, grad_cache=False)
    yield replace(usual, compiled=True)


def measure(kind: Kind, machine: Machine, args: argparse.Namespace) -> Figures:
    """Return the figures of one kind of step."""
    side = machine.side_pixels
    settings: dict[str, Any] = {
        "rows": kind.rows,
        "attention": kind.attention,
        "min_pixels": side**2 // 4,
        "max_pixels": side**2,
        "dtype": "bfloat16" if machine.half else "float32",
        "freeze_vision": True,
    }
    if kind.lora:
        settings["adapter"] = {"rank": machine.rank, "alpha": 64.0, "dropout": 0.0, "dora": False}
    encoder = encoder_of(settings, machine.sizes).to(machine.device)
    backbone: Any = encoder.backbone
    if kind.compiled:
        for layer in backbone.model.language_model.layers:
            layer.compile(dynamic=True)
    lengths = [TEXT_TOKENS // 2, TEXT_TOKENS * 3 // 2]
    data = samples(args.images, turns=TURNS, side_pixels=side, lengths=lengths)
    step, inputs = step_of(
        encoder,
        data,
        packer=PACKERS[kind.packer],
        grad_cache=kind.grad_cache,
        chunk_tokens=args.chunk_tokens if kind.grad_cache else None,
    )
    step()
    peak = peak_bytes(machine.device, step)
    began = time.perf_counter()
    for _ in range(args.rounds):
        step()
    if machine.half:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / args.rounds
    chunks = inputs.queries.chunks + inputs.targets.chunks
    tokens, padding = (
        sum(getattr(it, name) for it in chunks) for name in ("num_tokens", "num_padding_tokens")
    )
    layers = backbone.layers_of(config_of(settings, machine.sizes), backbone.sizes)
    counter = BatchFlops(layers, backbone.hidden_dim, symmetric=False)
    pairs = len(inputs.queries.ids)
    flops = (counter.encoder(chunks) + counter.loss(pairs, len(inputs.targets.ids))) / seconds
    peak_of_device = peak_flops(machine.name)
    return Figures(
        kind=kind,
        pairs_per_second=pairs / seconds,
        tokens_per_second=tokens / seconds,
        padding_share=padding / (tokens + padding),
        tflops=flops / 1e12,
        utilisation=flops / peak_of_device if peak_of_device else None,
        peak_gib=peak / 2**30,
    )


def main() -> None:
    """Measure every kind of step that runs on this machine, and print a table."""
    machine = Machine.here()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32 if machine.half else 4)
    parser.add_argument("--chunk-tokens", type=int, default=16384 if machine.half else 512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{machine.name}: {args.images} images of {TURNS} turns, chunks of {args.chunk_tokens:,}")
    print(f"{'':<44}   pairs/s   tokens/s  padding   TFLOP/s     MFU    GiB")
    steps = []
    for kind in kinds(machine.kernels()):
        figures = measure(kind, machine, args)
        steps.append(asdict(figures))
        print(figures.row(), flush=True)
    if args.json:
        report = {"device": machine.name, "versions": versions(), "command": sys.argv, "steps": steps}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
