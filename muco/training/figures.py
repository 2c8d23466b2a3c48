"""The figures of training steps, summed up to the next line of the log."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from muco.config.recipe import TrainSettings
from muco.costs.batch import BatchFlops
from muco.costs.tables import peak_flops
from muco.distributed.ranks import Ranks
from muco.model.build import Model
from muco.training.batches import StepInputs
from muco.training.checkpoint import Progress
from muco.training.log import LoggedStep
from muco.training.optimizer import learning_rate_share
from muco.training.step import StepLoss


@dataclass(frozen=True)
class Figures:
    """Adds steps to a run's progress, and makes the lines of train.jsonl."""

    settings: TrainSettings
    progress: Progress
    """Its `window` has the sums since the last line, so that a resumed run goes on with them."""
    ranks: Ranks
    device: torch.device
    flops: BatchFlops | None
    """None if the backbone does not say what it computes."""
    peak_flops: float | None
    """FLOP/s of all processes' devices in the run's precision; None if it is not known."""

    @classmethod
    def of(
        cls, model: Model, settings: TrainSettings, progress: Progress, ranks: Ranks, precision: str
    ) -> Figures:
        """Return the figures of a model on its device; `precision` is accelerate's name."""
        device = next(model.encoder.parameters()).device
        peak = None
        if device.type == "cuda" and precision == "bf16":
            peak = peak_flops(torch.cuda.get_device_name(device))
        peak = None if peak is None else peak * ranks.world_size
        return cls(settings, progress, ranks, device, BatchFlops.of(model), peak)

    def add_step(self, inputs: StepInputs, result: StepLoss, grad_norm: float) -> None:
        """Add a step of all processes."""
        chunks = inputs.queries.chunks + inputs.targets.chunks
        own = {
            "samples": len(inputs.samples),
            "tokens": sum(chunk.num_tokens for chunk in chunks),
            "padding": sum(chunk.num_padding_tokens for chunk in chunks),
            "cut_texts": sum(chunk.num_cut_texts for chunk in chunks),
        }
        if self.settings.max_dialogue_tokens is not None:
            own["count/dropped_turns"] = inputs.num_dropped
        if self.flops is not None:
            own |= {"model_flops": self.flops.encoder(chunks), "targets": len(inputs.targets.ids)}
        all_ranks = self.ranks.sums(own, self.device)
        if self.flops is not None:
            num_targets = int(all_ranks.pop("targets"))
            all_ranks["model_flops"] += self.flops.loss(result.num_turns, num_targets)
        if cut_texts := all_ranks.pop("cut_texts"):
            self._add({"count/cut_texts": cut_texts})
        self.progress.step = inputs.step + 1
        self.progress.samples_seen += int(all_ranks["samples"])
        self.progress.pairs_seen += result.num_turns
        self.progress.tokens_seen += int(all_ranks["tokens"])
        self._add({"steps": 1, "loss": result.mean, "grad_norm": grad_norm, "pairs": result.num_turns})
        self._add(all_ranks)
        self._add({f"count/{name}": count for name, count in result.counts.items()})
        self._add({f"rate/{name}": count for name, count in result.rates.items()})

    def add_seconds(self, seconds: float, *, waited: float) -> None:
        """Add the time of a step, of which training `waited` for data."""
        self.progress.train_seconds += seconds
        self._add({"seconds": seconds, "wait": waited})

    def take_line(self, inputs: StepInputs) -> LoggedStep:
        """Return the line over the steps since the one before, after the step of these inputs."""
        sums, self.progress.window = self.progress.window, {}
        steps, seconds = sums["steps"], sums["seconds"]
        flops = sums.get("model_flops")
        return LoggedStep(
            step=self.progress.step,
            epoch=inputs.epoch,
            loss=sums["loss"] / steps,
            lr=self.settings.learning_rate * learning_rate_share(self.settings, inputs.step),
            grad_norm=sums["grad_norm"] / steps,
            pairs_per_second=sums["pairs"] / seconds,
            samples_per_second=sums["samples"] / seconds,
            tokens=round(sums["tokens"] / steps),
            padding_share=sums["padding"] / max(sums["tokens"] + sums["padding"], 1),
            wait_share=sums["wait"] / seconds,
            model_flops=None if flops is None else round(flops / steps),
            flops_per_second=None if flops is None else flops / seconds,
            utilization=None if not flops or not self.peak_flops else flops / seconds / self.peak_flops,
            counts={name[6:]: sums[name] / steps for name in sums if name.startswith("count/")},
            **{name[5:]: sums[name] / sums["pairs"] for name in sums if name.startswith("rate/")},
        )

    def _add(self, figures: dict[str, float]) -> None:
        for name, figure in figures.items():
            self.progress.window[name] = self.progress.window.get(name, 0.0) + figure
