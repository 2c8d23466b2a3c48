"""Turn a recipe into the objects of a run: data, batches, model and suites."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from muco.config.recipe import DatasetSettings, Recipe
from muco.console import progress_bar
from muco.core.errors import DataError
from muco.core.loss import Loss
from muco.distributed.ranks import Ranks
from muco.evaluation.suite import NamedSuite, make_suites, missing_suites
from muco.model.build import Model, build_encoder
from muco.run_folder import check_same_data, check_same_recipe
from muco.training.batches import StepBatches
from muco.training.checkpoint import Origin, Progress, checkpoints, ignored_checkpoints, restore
from muco.training.data import check_sample_ids, make_sampler, missing_shards, open_data, texts_of
from muco.training.image_sizes import enlarging_note
from muco.training.trainer import Trainer
from muco.training.validation import Validator


@dataclass
class Job:
    """The objects of one run."""

    progress: Progress
    """Of the last checkpoint; training updates it."""
    trainer: Trainer | None
    """None for a run that only evaluates."""
    suites: list[NamedSuite]
    """Empty for a run that only trains."""


def assemble(
    recipe: Recipe,
    run_folder: Path,
    origin: Origin,
    *,
    train: bool,
    evaluate: bool,
    console: Console,
    ranks: Ranks,
) -> Job:
    """Open the data and build what a run needs; training goes on from the last checkpoint in the run folder.

    Nothing is written but shards in the cache folder, by the main process. Raise DataError with all data that
    is missing, MucoError if components, data and checkpoint do not fit together.
    """
    validates = train and recipe.train.validate_every is not None
    suites = make_suites(recipe.evaluate) if evaluate or validates else []
    verify_data(recipe.name, recipe.data if train else {}, suites)
    for path in ignored_checkpoints(run_folder):
        console.print(f"note: {path} is no complete checkpoint of this run; it is not used")
    saved = checkpoints(run_folder)
    progress = saved[-1].progress() if saved else Progress()
    if not train:
        return Job(progress, None, suites)

    validator = Validator.of(recipe, suites, run_folder, ranks) if validates else None
    with _main_first(ranks):  # The main process makes the shards; the others find them.
        readers = open_data(recipe.data, partial(progress_bar, console=console))
    for name, reader in readers.items():
        check_sample_ids(name, recipe.data[name], reader)
        reader.verify_columns()
    min_pixels: int = getattr(recipe.backbone.config, "min_pixels", 0)
    if note := enlarging_note(min_pixels, readers.values()):
        console.print(f"note: {note}")
    sampler = make_sampler(recipe, readers)
    texts = texts_of(readers.values())
    loss: Loss = recipe.loss.make()
    optimizer_state = None
    if saved:
        saved_origin = saved[-1].origin()
        check_same_recipe(f"{saved[-1].folder}", saved_origin.recipe, recipe)
        check_same_data(f"{saved[-1].folder}", saved_origin.data, origin.data)
        model, optimizer_state = restore(saved[-1], recipe.model, loss)
    else:
        encoder = build_encoder(recipe.model, texts=texts, seed=recipe.seed)
        model = Model(recipe.model, encoder, loss)
    batches = StepBatches(
        readers=readers,
        sampler=sampler,
        packer=recipe.packer.make(),
        processor=model.encoder.backbone.processor,
        global_batch_size=recipe.train.global_batch_size,
        seed=recipe.seed,
        max_dialogue_tokens=recipe.train.max_dialogue_tokens,
        rank=ranks.rank,
        num_ranks=ranks.world_size,
    )
    trainer = Trainer(
        recipe.train,
        recipe.seed,
        run_folder,
        origin,
        model,
        batches,
        progress,
        console,
        ranks,
        optimizer_state,
        validator,
    )
    return Job(progress, trainer, suites if evaluate else [])


def verify_data(title: str, data: Mapping[str, DatasetSettings], suites: Sequence[NamedSuite]) -> None:
    """Raise DataError that names all missing shards and suites' data, and how to get them."""
    missing = missing_shards(data) | missing_suites(suites)
    if missing:
        lines = [f"  {path}: {message}".replace("\n", "\n    ") for path, message in missing.items()]
        raise DataError(f"{title}: data is missing\n" + "\n".join(lines))


@contextmanager
def _main_first(ranks: Ranks) -> Generator[None]:
    """Run the block in the main process, then in all others."""
    if not ranks.is_main:
        ranks.wait()
    yield
    if ranks.is_main:
        ranks.wait()
