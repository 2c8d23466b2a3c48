"""`muco run --flops`: what one step of a recipe computes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from muco.config.recipe import Recipe
from muco.costs.assumptions import Assumptions, read_assumptions
from muco.costs.estimate import Estimate, estimate
from muco.costs.step import StepFlops

NOT_COUNTED = "softmax, norms, activations, embedding lookups, the pooler, the optimizer"


def print_flops(recipe: Recipe, assume: Sequence[str], console: Console) -> None:
    """Print the FLOPs of a step by part, and everything that was assumed.

    `assume` are `KEY=VALUE` each; see `Assumptions`. Raise MucoError if one is not allowed, or the sizes of
    the backbone are not known.
    """
    assumed = read_assumptions(assume, recipe.train.global_batch_size)
    result = estimate(recipe, assumed)
    cached = "on" if recipe.train.grad_cache else "off"
    for line in (
        f"{recipe.name}: FLOPs of one training step, over all processes",
        f"sizes: {result.source}",
        "assumed, and changed by --assume KEY=VALUE:",
        *_aligned([(f"  {name}={getattr(assumed, name)}", text) for name, text in _descriptions()]),
        f"batch: {assumed.images:,} images, {result.num_queries:,} queries, {result.num_targets:,} targets; "
        f"{result.query_tokens:,} and {result.target_tokens:,} tokens",
        f"settings: train.grad_cache is {cached}",
        "",
        *_aligned([("part", "forward", "backward", "recomputed"), *_parts(result.step)], right=True),
        "",
        *_aligned(_totals(result, assumed)),
        f"not counted: {NOT_COUNTED}",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _descriptions() -> list[tuple[str, str]]:
    fields = Assumptions.model_fields.items()
    return [(name, " ".join((field.description or "").split())) for name, field in fields]


def _parts(step: StepFlops) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, flops in step.once.items():
        again = flops.recomputed + step.twice.get(name, 0)
        rows.append((name, *(f"{each:,}" for each in (flops.forward, flops.backward, again))))
    return rows


def _totals(result: Estimate, assumed: Assumptions) -> list[tuple[str, ...]]:
    step = result.step
    hardware = step.hardware + (step.scores if assumed.flash_attention else 0)
    rows = (
        ("model FLOPs", step.model, "forward and backward"),
        ("hardware FLOPs", hardware, "and what is computed again"),
        ("masked", step.unmasked, "model FLOPs, of attention only the pairs that the mask allows"),
        ("per image", step.model // assumed.images, "model FLOPs"),
        ("per pair", step.model // result.num_queries, "model FLOPs"),
    )
    return [(name, f"{value:,}", f"{value:.4g}", text) for name, value, text in rows]


def _aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Return rows as lines with equal columns; with `right`, all but the first are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<", *(">" if right else "<") * (len(widths) - 1)]
    cells = [[f"{cell:{sides[i]}{widths[i]}}" for i, cell in enumerate(row)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]
