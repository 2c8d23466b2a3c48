"""The training loop: run steps, write the log and checkpoints, stop on a signal."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from muco.config.recipe import TrainSettings
from muco.core.errors import MucoError
from muco.core.ids import stable_id
from muco.distributed.fsdp import Shards, clip_gradients, fsdp_requested
from muco.distributed.ranks import Ranks
from muco.distributed.shutdown import GracefulShutdown, Interrupted, ignore_stop_signals
from muco.model.build import Model
from muco.training.batches import StepBatches, StepInputs
from muco.training.checkpoint import Origin, Progress, checkpoints, save_checkpoint
from muco.training.chunk_choice import ChunkChoice
from muco.training.early_stopping import best_of, best_with, must_stop
from muco.training.figures import Figures
from muco.training.log import UNREADABLE_FILE, TrainLog, UnreadableSample, append_unreadable, cut_lines
from muco.training.optimizer import make_optimizers
from muco.training.parcel import Parcel, Parcels
from muco.training.step import Stepper
from muco.training.validation import Validator

_MIN_SAMPLES = 1000
"""The share of samples that cannot be read is of at least this many."""


@dataclass
class Trainer:
    """Trains a model from the step that `progress` names to `train.num_steps`."""

    settings: TrainSettings
    seed: int
    folder: Path
    """The run folder."""
    origin: Origin
    """Saved with each checkpoint."""
    model: Model
    batches: StepBatches
    progress: Progress
    """Of the last checkpoint; it is updated."""
    console: Console
    ranks: Ranks
    optimizer_state: list[dict[str, Any]] | None = None
    """Of the last checkpoint; None if training starts."""
    validator: Validator | None = None
    """None without `train.validate_every`."""

    @property
    def is_done(self) -> bool:
        """Whether no step and no validation is left."""
        at_the_end = self.progress.step >= self.settings.num_steps and not self._validation_is_due
        return self._has_stopped or at_the_end

    @property
    def _has_stopped(self) -> bool:
        return must_stop(self.settings.early_stopping, self.progress.early_stopping)

    @property
    def _validation_is_due(self) -> bool:
        every, step = self.settings.validate_every, self.progress.step
        is_due = every is not None and step > 0 and (step % every == 0 or step == self.settings.num_steps)
        return is_due and self.progress.validated_step != step

    def describe(self) -> str:
        """Return the sizes of model, data and epoch in words."""
        size = sum(weight.numel() for weight in self.model.encoder.parameters())
        samples, steps = sum(self.batches.catalog.values()), self.batches.steps_per_epoch
        return f"{size / 1e6:.1f}M parameters, {samples:,} samples, {steps} steps an epoch"

    def train(self) -> None:
        """Train to the last step and write a checkpoint there.

        Raise Interrupted after a stop signal, when a checkpoint was written, and MucoError if the loss is not
        finite, too many samples cannot be read, a data worker was killed, or the disk is full. With
        `train.early_stopping` the last step may come earlier.
        """
        settings, start = self.settings, self.progress.step
        self._set_up()
        self._choose_chunks()
        if self.ranks.is_main:
            cut_lines(self.folder / UNREADABLE_FILE, start)
        self.ranks.wait()
        with GracefulShutdown() as shutdown, self._open_log(start) or nullcontext() as log:
            if self._validation_is_due:  # a stop signal came before it
                self._validate(log)
                self._save()
            began = time.perf_counter()
            for inputs in () if self._has_stopped else self._loader(start):
                waited = time.perf_counter() - began
                self._step(inputs)
                now = time.perf_counter()
                self._figures.add_seconds(now - began, waited=waited)
                began = now
                self._log(log, inputs)
                step = self.progress.step
                # The signal that any process received: all stop after the same step.
                signum = self.ranks.greatest(shutdown.signum or 0)
                if self._validation_is_due and not signum:
                    self._validate(log)
                is_best = self.progress.best is not None and self.progress.best.step == step
                ends = signum or step == settings.num_steps or self._has_stopped
                if ends or is_best or step % settings.checkpoint_every == 0:
                    self._save()
                began = time.perf_counter()
                if signum:
                    raise Interrupted(
                        f"stopped after step {step} of {settings.num_steps}; the checkpoint is written. "
                        "Go on with --resume.",
                        signum,
                    )
                if self._has_stopped:
                    self.console.print(self._describe_early_stop())
                    break

    def _set_up(self) -> None:
        """Move the model to this process's device, and make what trains it."""
        settings = self.settings
        on_cpu = not torch.cuda.is_available()
        precision = _precision(settings.precision)
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision)
        backbone = self.model.encoder.backbone
        if summary := backbone.startup_summary(accelerator.device, half=precision == "bf16"):
            self.console.print(summary)
        parts = nn.ModuleList([self.model.encoder, self.model.loss])
        parts.train().to(accelerator.device)
        self.ranks.share_weights(parts)
        self._shards = Shards()
        if fsdp_requested() and self.ranks.world_size > 1:
            by_layer = settings.gather_weights == "layer"
            self._shards = Shards.of(self.model.encoder, self.ranks, accelerator.device, by_layer=by_layer)
        self._optimizers = make_optimizers(parts, settings)
        if self.optimizer_state is not None:
            self._optimizers.load_state_dict(self.optimizer_state)
        self._stepper = Stepper(
            self.model.encoder,
            self.model.loss,
            accelerator.device,
            self.ranks,
            self._shards,
            lambda: accelerator.autocast(),
            grad_cache=settings.grad_cache,
            offload_images=settings.offload_image_features,
        )
        self._figures = Figures.of(self.model, settings, self.progress, self.ranks, precision)

    def _choose_chunks(self) -> None:
        """Split the batches into chunks of the size that the recipe or the memory allows."""
        state_bytes = self._optimizers.state_bytes()
        choice = ChunkChoice(self._stepper, self.batches, self.progress, state_bytes, self.console)
        chunk_tokens, held_tokens = choice.choose(self.settings, self.progress.step)
        self.batches = self.batches.chunked(chunk_tokens)
        self._stepper = replace(self._stepper, held_tokens=held_tokens)

    def _open_log(self, start: int) -> TrainLog | None:
        """Return the log of the main process; the others have none."""
        if not self.ranks.is_main:
            return None
        return TrainLog(
            self.folder,
            start=start,
            num_steps=self.settings.num_steps,
            console=self.console,
            trackers=self.settings.trackers,
            recipe=self.origin.recipe,
        )

    def _loader(self, start: int) -> Iterator[StepInputs]:
        """Yield the inputs of the remaining steps; data workers prepare them."""
        settings = self.settings
        loader = DataLoader(
            Parcels(self.batches) if settings.num_workers else self.batches,
            sampler=range(start, settings.num_steps),
            batch_size=None,
            num_workers=settings.num_workers,
            worker_init_fn=_start_worker if settings.num_workers else None,
        )
        batches = iter(loader)
        if settings.num_workers and threading.current_thread() is threading.main_thread():
            # PyTorch's handler would raise in the middle of a step; `next` notices a dead worker too.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for batch in batches:
                yield batch.open() if isinstance(batch, Parcel) else batch
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise MucoError(self._describe_dead_worker(start)) from error

    def _describe_dead_worker(self, start: int) -> str:
        """Write a checkpoint if one process is enough for that, and return what happened and what to do."""
        step = self.progress.step
        saved = "the last checkpoint is complete"
        if self.ranks.world_size == 1 and step > start:
            self._save()
            saved = f"the checkpoint of step {step} is written"
        return (
            f"step {step + 1}: a data worker was killed, probably because memory ran out; {saved}. "
            "Lower train.num_workers, then go on with --resume."
        )

    def _step(self, inputs: StepInputs) -> None:
        own = {"read": len(inputs.samples), "unreadable": len(inputs.unreadable)}
        numbers = self.ranks.sums(own, self._stepper.device)
        self._log_unreadable(inputs, numbers)
        # Dropout draws are a function of the step, so that resuming needs no random state.
        torch.manual_seed(stable_id("step", str(self.seed), str(inputs.step), str(self.ranks.rank)))
        step = f"step {inputs.step + 1}"
        if not numbers["read"]:
            raise MucoError(
                f"{step}: none of its samples can be read, or has a turn within train.max_dialogue_tokens; "
                f"see {UNREADABLE_FILE}"
            )
        samples = f"Samples: {', '.join(inputs.samples[:8])}"
        if len(inputs.samples) > 8:
            samples += f" and {len(inputs.samples) - 8} more"
        try:
            result = self._stepper(inputs)
        except ValueError as error:
            raise MucoError(f"{step}: {error}. {samples}") from error
        if not math.isfinite(result.mean):
            raise MucoError(
                f"{step}: the loss is {result.mean}. The weights are unchanged. {samples}\n"
                f"{'The last checkpoint is complete. ' * bool(checkpoints(self.folder))}"
                "This usually helps: a lower train.learning_rate, or loss.temperature nearer 0.05."
            )
        norm = clip_gradients(self._optimizers.weights(), self.settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise MucoError(
                f"{step}: the gradient is not finite though the loss is {result.mean:.4f}. The weights are "
                f"unchanged. {samples}"
            )
        self._optimizers.step(inputs.step)
        self._figures.add_step(inputs, result, float(norm))

    def _log(self, log: TrainLog | None, inputs: StepInputs) -> None:
        """Write a line if one is due, over the steps since the line before."""
        step = self.progress.step
        if log is not None:
            log.advance(step)
        if step % self.settings.log_every == 0 or step == self.settings.num_steps:
            line = self._figures.take_line(inputs)
            if log is not None:
                log.write(line)

    def _validate(self, log: TrainLog | None) -> None:
        """Score the suites with the weights of this step, and update the best scores in all processes."""
        assert self.validator is not None
        step = self.progress.step
        self._shards.unshard()
        line = self.validator.validate(self.model.encoder, step)
        self._shards.reshard(self.model.encoder)
        scores = {} if line is None else line.averages | line.tasks
        own = {key: scores.get(name, 0.0) for key, name in self.settings.watched_metrics.items()}
        # The main process alone has scores; the others add zeros.
        watched = self.ranks.sums(own, self._stepper.device) if own else {}
        progress, stopping = self.progress, self.settings.early_stopping
        progress.validated_step = step
        if self.settings.keep_best is not None:
            score = watched["train.keep_best"]
            progress.best = best_with(progress.best, self.settings.keep_best, step, score)
        if stopping is not None:
            score = watched["train.early_stopping.metric"]
            progress.early_stopping = best_with(
                progress.early_stopping, stopping.metric, step, score, min_delta=stopping.min_delta
            )
        if log is not None and line is not None:
            log.write_validation(line, best_of(progress.best, self.settings.keep_best))

    def _describe_early_stop(self) -> str:
        best, settings = self.progress.early_stopping, self.settings.early_stopping
        assert best is not None
        assert settings is not None
        return (
            f"early stopping after step {self.progress.step:,} of {self.settings.num_steps:,}: "
            f"{best.num_since} validations without more than {best.words} (min_delta {settings.min_delta:g})"
        )

    def _save(self) -> None:
        states = self._optimizers.state_dict(keep=self.ranks.is_main)
        with self._shards.full_state_dicts(keep=self.ranks.is_main):
            if self.ranks.is_main:
                keep = self.settings.keep_checkpoints
                best = best_of(self.progress.best, self.settings.keep_best)
                save_checkpoint(
                    self.folder, self.model, states, self.progress, self.origin,
                    keep=keep, best_step=best and best.step,
                )  # fmt: skip
        self.ranks.wait()

    def _log_unreadable(self, inputs: StepInputs, numbers: dict[str, float]) -> None:
        """Log this process's unreadable samples; raise MucoError if all processes have too many."""
        if not numbers["unreadable"]:
            return
        append_unreadable(
            self.folder,
            (UnreadableSample(inputs.step + 1, each.sample, each.reason) for each in inputs.unreadable),
        )
        self.progress.unreadable += int(numbers["unreadable"])
        seen = self.progress.samples_seen + int(numbers["read"]) + self.progress.unreadable
        share = self.progress.unreadable / max(seen, _MIN_SAMPLES)
        allowed = self.settings.max_broken_share
        if share > allowed:
            first = "".join(f" One of this step: {it.sample}: {it.reason}" for it in inputs.unreadable[:1])
            raise MucoError(
                f"step {inputs.step + 1}: {self.progress.unreadable} of {seen} samples cannot be read, more "
                f"than train.max_broken_share {allowed:.2%} allows.{first}\n"
                f"They are listed in {self.folder / UNREADABLE_FILE}."
            )


def _precision(setting: str) -> str:
    """Return accelerate's name of `train.precision`."""
    if setting == "auto":
        setting = "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
    return {"float32": "no", "bfloat16": "bf16"}[setting]


def _start_worker(_worker: int) -> None:
    """Let a data worker use one thread, and leave signals to stop to the main process."""
    ignore_stop_signals()
    torch.set_num_threads(1)
