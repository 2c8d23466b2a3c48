"""The training loop: step, log, checkpoint, stop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from muco.core.errors import MucoError
from muco.core.ids import stable_id
from muco.core.recipe import Recipe
from muco.training.batches import StepBatches, StepInputs
from muco.training.build import Model
from muco.training.checkpoint import Progress, save_checkpoint
from muco.training.interrupt import Interrupted, StopWish
from muco.training.log import TrainLog, cut_lines
from muco.training.optimizer import learning_rate, make_optimizer
from muco.training.step import StepLoss, forward_step

UNREADABLE_FILE = "unreadable.jsonl"
_BROKEN_FLOOR = 1000
"""A share of broken samples is a share of at least so many."""


@dataclass
class Trainer:
    """One run's training, from where `progress` stands to `train.num_steps`."""

    recipe: Recipe
    folder: Path
    model: Model
    batches: StepBatches
    progress: Progress
    console: Console
    optimizer_state: dict[str, Any] | None = None

    def train(self) -> None:
        """Train to the end and leave a checkpoint there.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
            MucoError: a loss that is not finite, too many broken samples, a full disk.
        """
        settings = self.recipe.train
        accelerator = Accelerator(mixed_precision=_precision(settings.precision))
        if accelerator.num_processes > 1:
            raise MucoError("training runs in one process for now; start it without a launcher")
        parts = nn.ModuleList([self.model.encoder, self.model.loss])
        parts.train().to(accelerator.device)
        self._optimizer = make_optimizer(parts, settings)
        if self.optimizer_state is not None:
            self._optimizer.load_state_dict(self.optimizer_state)
        self._encoder = accelerator.prepare(self.model.encoder)
        self._accelerator = accelerator

        start = self.progress.step
        cut_lines(self.folder / UNREADABLE_FILE, start)
        with (
            StopWish() as wish,
            TrainLog(self.folder, start=start, num_steps=settings.num_steps, console=self.console) as log,
        ):
            began = time.perf_counter()
            for inputs in self._loader(start):
                self._wait = time.perf_counter() - began
                self._step(inputs)
                now = time.perf_counter()
                self.progress.train_seconds += now - began
                self._count("seconds", now - began)
                began = now
                self._log(log, inputs)
                step = self.progress.step
                due = step % settings.checkpoint_every == 0 or step == settings.num_steps
                if due or wish.signum:
                    self._save()
                if wish.signum:
                    raise Interrupted(
                        f"stopped after step {step} of {settings.num_steps}; the checkpoint is written. "
                        "Go on with --resume.",
                        wish.signum,
                    )

    def _loader(self, start: int) -> Iterator[StepInputs]:
        """Yield the inputs of the steps left, made ahead by the data workers."""
        settings = self.recipe.train
        loader = DataLoader(
            self.batches,
            sampler=range(start, settings.num_steps),
            batch_size=None,
            num_workers=settings.num_workers,
            worker_init_fn=_calm_worker if settings.num_workers else None,
        )
        return iter(loader)

    def _step(self, inputs: StepInputs) -> None:
        self._note_unreadable(inputs)
        # Dropout draws are a function of the step, so that resuming needs no random state.
        torch.manual_seed(stable_id("step", str(self.recipe.seed), str(inputs.step)))
        if not inputs.samples:
            raise MucoError(f"step {inputs.step + 1}: none of its samples can be read; see {UNREADABLE_FILE}")
        try:
            result = forward_step(self._encoder, self.model.loss, inputs, self._accelerator.device)
        except ValueError as error:
            raise MucoError(f"step {inputs.step + 1}: {error}. Samples: {_some(inputs.samples)}") from error
        value = result.mean.item()
        if not math.isfinite(value):
            raise MucoError(
                f"step {inputs.step + 1}: the loss is {value}. No weight was changed by it. "
                f"Samples: {_some(inputs.samples)}\nThe last checkpoint is whole; a lower "
                "train.learning_rate or loss.temperature nearer 0.05 are the usual cures."
            )
        self._accelerator.backward(result.mean)
        norm: Any = self._accelerator.clip_grad_norm_(
            [weight for group in self._optimizer.param_groups for weight in group["params"]],
            self.recipe.train.max_grad_norm,
        )
        if not torch.isfinite(norm):
            raise MucoError(
                f"step {inputs.step + 1}: the gradient is not finite though the loss is {value:.4f}. "
                f"No weight was changed by it. Samples: {_some(inputs.samples)}"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe.train, inputs.step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._tally(inputs, result, value, float(norm))

    def _tally(self, inputs: StepInputs, result: StepLoss, loss: float, norm: float) -> None:
        """Add the step to the run's progress and to the sums of the next logged line."""
        chunks = inputs.queries.chunks + inputs.targets.chunks
        tokens = sum(chunk.num_tokens for chunk in chunks)
        self.progress.step = inputs.step + 1
        self.progress.samples_seen += len(inputs.samples)
        self.progress.pairs_seen += result.num_turns
        self.progress.tokens_seen += tokens
        self._count("steps", 1)
        self._count("loss", loss)
        self._count("grad_norm", norm)
        self._count("samples", len(inputs.samples))
        self._count("pairs", result.num_turns)
        self._count("tokens", tokens)
        self._count("padding", sum(chunk.num_padding_tokens for chunk in chunks))
        self._count("wait", self._wait)
        for name, count in result.counts.items():
            self._count(f"count/{name}", float(count))

    def _count(self, name: str, value: float) -> None:
        self.progress.window[name] = self.progress.window.get(name, 0.0) + value

    def _log(self, log: TrainLog, inputs: StepInputs) -> None:
        """Write a line when one is due, its figures over the steps since the last."""
        log.advance(self.progress.step)
        if (
            self.progress.step % self.recipe.train.log_every
            and self.progress.step != self.recipe.train.num_steps
        ):
            return
        sums = self.progress.window
        steps, seconds = sums["steps"], sums["seconds"]
        counts = {name[6:]: sums[name] / steps for name in sums if name.startswith("count/")}
        hits = counts.pop("hits", None)
        log.write(
            {
                "step": self.progress.step,
                "epoch": inputs.epoch,
                "loss": sums["loss"] / steps,
                "lr": learning_rate(self.recipe.train, inputs.step),
                "grad_norm": sums["grad_norm"] / steps,
                "pairs_per_second": sums["pairs"] / seconds,
                "samples_per_second": sums["samples"] / seconds,
                "tokens": round(sums["tokens"] / steps),
                "padding_share": sums["padding"] / (sums["tokens"] + sums["padding"]),
                "precision": None if hits is None else hits * steps / sums["pairs"],
                "wait_share": sums["wait"] / seconds,
                "counts": counts,
            }
        )
        self.progress.window = {}

    def _save(self) -> None:
        encoder = self._accelerator.unwrap_model(self._encoder)
        model = Model(encoder, self.model.loss)
        save_checkpoint(self.folder, self.recipe, model, self._optimizer, self.progress)

    def _note_unreadable(self, inputs: StepInputs) -> None:
        if not inputs.unreadable:
            return
        with open(self.folder / UNREADABLE_FILE, "a", encoding="utf-8") as file:
            for each in inputs.unreadable:
                file.write(
                    json.dumps({"step": inputs.step + 1, "sample": each.sample, "reason": each.reason}) + "\n"
                )
        self.progress.unreadable += len(inputs.unreadable)
        seen = self.progress.samples_seen + len(inputs.samples) + self.progress.unreadable
        share = self.progress.unreadable / max(seen, _BROKEN_FLOOR)
        allowed = self.recipe.train.max_broken_share
        if share > allowed:
            first = inputs.unreadable[0]
            raise MucoError(
                f"step {inputs.step + 1}: {self.progress.unreadable} of {seen} samples cannot be read, more "
                f"than train.max_broken_share {allowed:.2%} allows. The first of this step: {first.sample}: "
                f"{first.reason}\nAll are named in {self.folder / UNREADABLE_FILE}."
            )


def _precision(wanted: str) -> str:
    if wanted == "auto":
        able = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return "bf16" if able else "no"
    return {"float32": "no", "bfloat16": "bf16"}[wanted]


def _calm_worker(_worker: int) -> None:
    """Let a data worker use one thread, and leave Ctrl-C to the main process."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
