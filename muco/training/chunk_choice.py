"""The size of a run's chunks and how many of them are held; for `auto`, what fits into the memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console

from muco.config.recipe import TrainSettings
from muco.training.batches import StepBatches, StepInputs
from muco.training.checkpoint import Progress
from muco.training.sizing import (
    ChunkMemory,
    choose_chunk_tokens,
    choose_held_tokens,
    describe_step,
    longest_fits,
    measure_chunks,
    predict_memory,
)
from muco.training.step import Stepper

_NO_CHOICE = 2**62
"""Of a process that does not measure."""


@dataclass(frozen=True)
class ChunkChoice:
    """Chooses the size of a chunk before the first step. All processes take part."""

    stepper: Stepper
    batches: StepBatches
    progress: Progress
    """`auto` stores there what it chooses; a resumed run keeps it."""
    state_bytes: int
    """Size of the optimizers' states."""
    console: Console

    def choose(self, settings: TrainSettings, step: int) -> tuple[int | None, int]:
        """Return `chunk_tokens` and `held_tokens`, or what `auto` chooses; print the sizes of a step's batch.

        The main process measures for all, because it always has samples. Where layers are gathered one by
        one, the others encode its chunks with it, and the least of their choices counts.
        """
        measures = self.stepper.ranks.is_main or self.stepper.shards.by_layer
        singles = self.batches.of_rank(0).chunked(1)[step] if measures else None
        if settings.chunk_tokens == "auto":
            memory = self._choose_auto(singles)
            chunk_tokens = self.progress.chunk_tokens
        else:
            memory, chunk_tokens = self._measure(singles), settings.chunk_tokens
        held_tokens = settings.held_limit(chunk_tokens or 0)
        if held_tokens is None:
            held_tokens = self._choose_held(memory, singles, chunk_tokens or 0)
        inputs = self.batches.chunked(chunk_tokens)[step]
        stepper = replace(self.stepper, held_tokens=held_tokens)
        for line in describe_step(inputs, stepper, stepper.ranks):
            self.console.print(line)
        if memory is not None:
            self.console.print(str(predict_memory(stepper, memory, inputs, self.state_bytes)))
        return chunk_tokens, held_tokens

    def _choose_auto(self, singles: StepInputs | None) -> ChunkMemory | None:
        """Set what `chunk_tokens: auto` chooses in `progress`, and return the measured memory.

        A batch that cannot be read decides nothing.
        """
        stepper, progress, ranks = self.stepper, self.progress, self.stepper.ranks
        if progress.gradient_checkpointing:
            self._checkpoint_gradients()
        memory = self._measure(singles)
        batch = singles if singles and singles.samples and not progress.chunk_tokens else None
        if batch is not None:
            progress.gradient_checkpointing = not longest_fits(stepper, memory, batch, self.state_bytes)
        progress.gradient_checkpointing = bool(ranks.greatest(progress.gradient_checkpointing))
        if progress.gradient_checkpointing and self._checkpoint_gradients():
            memory = self._measure(singles)
        if batch is not None:
            progress.chunk_tokens = choose_chunk_tokens(stepper, memory, batch, self.state_bytes)
        progress.chunk_tokens = self._least(progress.chunk_tokens)
        chosen = "each side of a batch" if progress.chunk_tokens is None else f"{progress.chunk_tokens:,}"
        self.console.print(f"chunk_tokens: auto takes {chosen}")
        return memory

    def _choose_held(self, memory: ChunkMemory | None, singles: StepInputs | None, chunk_tokens: int) -> int:
        """Return what `held_tokens: auto` chooses: one chunk if the batch cannot be read."""
        progress = self.progress
        if memory is not None and singles and singles.samples and not progress.held_tokens:
            progress.held_tokens = choose_held_tokens(
                self.stepper, memory, singles, self.state_bytes, chunk_tokens=chunk_tokens
            )
        progress.held_tokens = self._least(progress.held_tokens)
        held_tokens = progress.held_tokens or chunk_tokens
        self.console.print(f"held_tokens: auto takes {held_tokens:,}")
        return held_tokens

    def _least(self, value: int | None) -> int | None:
        """Return the least of the processes' choices; None if no process has one."""
        least = self.stepper.ranks.least(value or _NO_CHOICE)
        return None if least == _NO_CHOICE else least

    def _checkpoint_gradients(self) -> bool:
        """Turn gradient checkpointing on; return whether this changes anything."""
        changes = self.stepper.encoder.backbone.checkpoint_gradients()
        if changes:
            self.console.print("chunk_tokens: auto turns backbone.gradient_checkpointing on")
        return changes

    def _measure(self, singles: StepInputs | None) -> ChunkMemory | None:
        """Measure chunks of a batch, each dialogue of which is a chunk in `singles`."""
        stepper = self.stepper
        with stepper.shards.step(stepper.encoder):
            memory = singles and measure_chunks(stepper, self.batches.of_rank(0), singles)
            for weight in stepper.parameters():
                weight.grad = None
        return memory
