"""Whole training steps of a Qwen2-VL-2B-sized model with random weights: throughput, utilisation, memory.

    python benchmarks/gpu_step.py                 # on a GPU; on a CPU a small model stands in
    python benchmarks/gpu_step.py --images 64 --chunk-tokens 32768

LoRA of rank 64 on the language model, a frozen vision tower, bfloat16 weights, cached gradients. Prints a
table; `--json FILE` writes it with versions, device and command.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.steps import encoder_of, samples, step_of
from muco.core import TurnEncoder
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.packers.single_turn import SingleTurn
from muco.run_folder import versions
from muco.training.batches import StepInputs
from muco.training.memory import peak_bytes

PEAK_TFLOPS = 989.0
"""Dense bfloat16 of an H100 or H200."""
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
class Figures:
    """One kind of step."""

    packer: str
    rows: str
    attention: str
    pairs_per_second: float
    tokens_per_second: float
    padding_share: float
    tflops: float
    """Of the matrix products that the step needs, a second."""
    utilisation: float
    """`tflops` divided by `PEAK_TFLOPS`."""
    peak_gib: float
    """Peak memory of a step without the weights."""

    def row(self) -> str:
        """Return a line of the table."""
        speed = f"{self.pairs_per_second:>9.1f} {self.tokens_per_second:>10,.0f} {self.padding_share:>8.1%}"
        work = f"{self.tflops:>8.3f} {self.utilisation:>7.2%} {self.peak_gib:>6.2f}"
        return f"{self.packer:<12} {self.rows:<7} {speed} {work}"


def flops(encoder: TurnEncoder, inputs: StepInputs) -> float:
    """Return the floating-point operations that a step needs, however it is computed.

    The frozen language model needs a forward pass and a backward pass to the activations: 4 a weight and
    token. Adapters need 6, the frozen vision tower 2. Attention is counted over the causal pairs of tokens of
    each dialogue. The second forward pass of cached gradients is not counted.
    """
    backbone: Any = encoder.backbone
    language = backbone.model.language_model
    linear = {
        name: w.numel() for name, w in language.named_parameters() if w.ndim == 2 and "embed" not in name
    }
    adapters = sum(size for name, size in linear.items() if "lora_" in name)
    frozen = sum(linear.values()) - adapters
    tower = sum(w.numel() for w in backbone.model.visual.parameters() if w.ndim >= 2)
    total = 0.0
    config = language.config
    for chunk in (*inputs.queries.chunks, *inputs.targets.chunks):
        total += chunk.num_tokens * (4 * frozen + 6 * adapters) + chunk.num_patches * 2 * tower
        lengths = _lengths(chunk.tensors)
        # Scores and weighted sums: 2 x 2 a pair and channel, half of the pairs; backward, twice as much.
        total += sum(length**2 for length in lengths) * 2 * config.hidden_size * config.num_hidden_layers * 3
    return total


def _lengths(tensors: dict[str, torch.Tensor]) -> Sequence[int]:
    if "cu_seqlens" in tensors:
        return tensors["cu_seqlens"].diff().tolist()
    rows, length = tensors["input_ids"].shape
    return [length] * rows


def measure(packer: str, rows: str, args: argparse.Namespace, device: torch.device) -> Figures:
    """Return the figures of one kind of step."""
    on_gpu = device.type == "cuda"
    side = 644 if on_gpu else 56
    settings = {
        "rows": rows,
        "min_pixels": side**2 // 4,
        "max_pixels": side**2,
        "dtype": "bfloat16" if on_gpu else "float32",
        "adapter": {"rank": 64 if on_gpu else 4, "alpha": 64.0, "dropout": 0.0, "dora": False},
    }
    encoder = encoder_of(settings, LARGE if on_gpu else SMALL).to(device)
    data = samples(
        args.images, turns=TURNS, side_pixels=side, lengths=[TEXT_TOKENS // 2, TEXT_TOKENS * 3 // 2]
    )
    step, inputs = step_of(
        encoder, data, packer=PACKERS[packer], grad_cache=True, chunk_tokens=args.chunk_tokens
    )
    step()
    peak = peak_bytes(device, step)
    began = time.perf_counter()
    for _ in range(args.rounds):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / args.rounds
    chunks = inputs.queries.chunks + inputs.targets.chunks
    tokens = sum(chunk.num_tokens for chunk in chunks)
    padding = sum(chunk.num_padding_tokens for chunk in chunks)
    tflops = flops(encoder, inputs) / seconds / 1e12
    return Figures(
        packer=packer,
        rows=rows,
        attention=encoder.backbone.startup_summary(device, half=on_gpu),
        pairs_per_second=len(inputs.queries.ids) / seconds,
        tokens_per_second=tokens / seconds,
        padding_share=padding / (tokens + padding),
        tflops=tflops,
        utilisation=tflops / PEAK_TFLOPS,
        peak_gib=peak / 2**30,
    )


def main() -> None:
    """Measure every packer with both kinds of rows, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32 if torch.cuda.is_available() else 4)
    parser.add_argument("--chunk-tokens", type=int, default=16384 if torch.cuda.is_available() else 512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, a small model"
    print(f"{name}: {args.images} images of {TURNS} turns, chunks of {args.chunk_tokens:,}")
    print("packer       rows      pairs/s   tokens/s  padding  TFLOP/s  of 989    GiB")
    steps = []
    for packer, rows in product(PACKERS, ("padded", "packed")):
        figures = measure(packer, rows, args, device)
        steps.append(asdict(figures))
        print(figures.row(), flush=True)
    if args.json:
        report = {"device": name, "versions": versions(), "command": sys.argv, "steps": steps}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
