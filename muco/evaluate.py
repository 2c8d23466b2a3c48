"""`muco evaluate`: suites over a model, be it a run's, a model folder, or a backbone as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.progress import track

from muco.core.errors import MucoError, did_you_mean
from muco.core.recipe import ComponentRef, EvaluateSettings, Evaluation, Recipe, is_mapping
from muco.core.recipe_file import validate_evaluation
from muco.core.registry import default_registry
from muco.run_folder import RunFolder, versions, with_scores

if TYPE_CHECKING:
    import torch

    from muco.core.encoder import TurnEncoder
    from muco.evaluation.encode import Encoder
    from muco.training.ranks import Ranks


@dataclass(frozen=True)
class Parts:
    """What of a recipe decides an embedding."""

    packer: ComponentRef[Any]
    backbone: ComponentRef[Any]
    pooler: ComponentRef[Any]

    @classmethod
    def of(cls, recipe: Recipe | Evaluation) -> Parts:
        """Return a recipe's parts."""
        return cls(recipe.packer, recipe.backbone, recipe.pooler)

    def dump(self) -> dict[str, Any]:
        """Return them as plain data."""
        return {
            "packer": self.packer.dump(),
            "backbone": self.backbone.dump(),
            "pooler": self.pooler.dump(),
        }


def evaluate(
    model: str,
    suite: str,
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    to: Path | None = None,
    console: Console | None = None,
) -> dict[str, float] | None:
    """Score a model on one suite and write result and report.

    Args:
        model: a run folder, a model folder, or a backbone's name.
        suite: the suite's name.
        data: its folder, where it has one.
        overrides: `KEY=VALUE` each, of the evaluation's keys: `evaluate.suites.0.num_queries=8`.
        to: where results go; by default into the run's folder, else to `runs/<name>`.
        console: what is told; by default the terminal.

    Returns:
        Averages and tasks by name; None in a process that only helps the main one.

    Raises:
        MucoError: something that the user can mend.
    """
    console = console or Console()
    from muco.training.build import make
    from muco.training.ranks import Ranks

    ranks = Ranks.join()
    source = find_model(model)
    wanted: dict[str, Any] = {"name": suite, **({} if data is None else {"data": str(data)})}
    values = {**source.values, "evaluate": {**source.values.get("evaluate", {}), "suites": [wanted]}}
    asked = validate_evaluation(values, overrides, title=f"muco evaluate {model}")
    for ref in asked.evaluate.suites:
        make(ref).verify_data()
    place = RunFolder(to or source.results or Path("runs") / asked.name)
    console = console if ranks.is_main else Console(quiet=True)
    encoder, weights = source.load(Parts.of(asked))
    if ranks.is_main:
        _prepare(place, asked, source, weights["weights"])
    ranks.wait()
    metrics = score(encoder, Parts.of(asked), weights, asked.evaluate, place, console, ranks)
    if metrics is None:
        return None
    before = place.summary()
    if before is not None:
        place.write_summary({**before, "metrics": with_scores(before.get("metrics", {}), metrics)})

    from muco.report import write_report

    tell(metrics, console)
    console.print(f"Report: {write_report(place.path)}", highlight=False, soft_wrap=True)
    return metrics


def score(
    encoder: TurnEncoder,
    parts: Parts,
    weights: dict[str, Any],
    settings: EvaluateSettings,
    place: RunFolder,
    console: Console,
    ranks: Ranks,
) -> dict[str, float] | None:
    """Run the suites of `settings`, write their results to `place`, and return averages and tasks by name.

    Args:
        encoder: the model; it is moved to this process's device.
        parts: what it is made of.
        weights: `weights`, a hash, and what else says which they are.
        settings: which suites, and how.
        place: the folder of the results; embeddings are kept there too.
        console: what is told.
        ranks: the processes that share the work; None is returned in all but the main one.

    Raises:
        MucoError: something that the user can mend.
    """
    from muco.evaluation.run import run_suite, write_result
    from muco.training.build import make

    metrics: dict[str, float] = {}
    with open_coder(encoder, parts, weights, settings, place.eval / "vectors", console, ranks) as (
        coder,
        about,
    ):
        for ref in settings.suites:
            result = run_suite(
                ref.name,
                make(ref),
                coder,
                ties=settings.ties,
                gallery_queries=settings.gallery_queries,
                track=lambda task: lambda windows, number: show(windows, number, task, console),
            )
            if result is None:
                continue
            depends_on = {**weights, "suite": ref.dump(), "ties": settings.ties, **about}
            write_result(result, place.eval, depends_on)
            metrics |= result.metrics()
            for warning in result.warnings:
                console.print(f"warning: {warning}", style="yellow", highlight=False)
    return metrics if ranks.is_main else None


@contextmanager
def open_coder(
    encoder: TurnEncoder,
    parts: Parts,
    weights: dict[str, Any],
    settings: EvaluateSettings,
    folder: Path,
    console: Console,
    ranks: Ranks,
) -> Iterator[tuple[Encoder, dict[str, Any]]]:
    """Yield what embeds contents, with a store of its own in `folder`, and what its vectors depend on.

    Raises:
        MucoError: the store is damaged, or another process is writing it.
    """
    from muco.evaluation.encode import Encoder
    from muco.evaluation.store import VectorStore
    from muco.training.build import make

    device = device_of_this_process()
    join_turns = settings.join_turns and "isolated_turns" in parts.backbone.cls.offers(parts.backbone.config)
    about = {
        "weights": weights["weights"],
        **parts.dump(),
        "join_turns": join_turns,
        "store": settings.store,
        "device": device.type,
        "versions": versions(),
    }
    key = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
    dim = encoder.pooler.embedding_dim
    ranks.wait()
    with VectorStore(folder / key, about, dim=dim, dtype=settings.store, part=ranks.rank) as store:
        ranks.wait()  # no process adds before all have seen what there was
        coder = Encoder(
            encoder.to(device),
            make(parts.packer),
            store,
            batch_tokens=settings.batch_tokens,
            join_turns=join_turns,
            ranks=ranks,
        )
        yield coder, about
    passes = ranks.sums(asdict(coder.passes), device)
    _tell_cuts(passes, console)
    _tell_passes(passes, console)


def _tell_cuts(passes: dict[str, float], console: Console) -> None:
    """Say how many texts the model saw no more than the beginning of."""
    if passes["cut_texts"]:
        console.print(
            f"warning: of {passes['num_contents']:,.0f} encoded contents {passes['cut_texts']:,.0f} have a "
            "text longer than the backbone's context; it was cut",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _tell_passes(passes: dict[str, float], console: Console) -> None:
    """Say what one pass an image saved, counted in what was encoded: seconds depend on more."""
    if passes["num_passes"] == passes["num_contents"]:
        return
    ratios = [
        f"{passes[f'{what}_alone'] / passes[what]:.2f} times fewer {name} ({passes[what]:,.0f}, not "
        f"{passes[f'{what}_alone']:,.0f})"
        for what, name in (("tokens", "tokens"), ("patches", "image patches"))
        if passes[what]
    ]
    console.print(
        f"{passes['num_contents']:,.0f} contents were encoded in {passes['num_passes']:,.0f} passes, one an "
        f"image: {' and '.join(ratios)} than one by one",
        highlight=False,
        soft_wrap=True,
    )


def tell(metrics: dict[str, float], console: Console) -> None:
    """Print averages and tasks by name."""
    for name, value in metrics.items():
        console.print(f"{name:<36} {value:.3f}", highlight=False)


def show(items: Iterable[Any], number: int, what: str, console: Console) -> Iterable[Any]:
    """Show a bar on a terminal, else a line at the start."""
    if not number:
        return items
    if not console.is_terminal:
        console.print(f"{what}: {number:,}", highlight=False)
        return items
    return track(items, description=what, total=number, console=console, transient=True)


def quiet_libraries() -> None:
    """Keep transformers from drawing bars of its own over ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def device_of_this_process() -> torch.device:
    """Return this process's CUDA device, or the CPU."""
    import os

    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    values: dict[str, Any]
    """The keys of its `Evaluation`."""
    folder: Path | None
    """The model folder; None for a backbone that is built."""
    results: Path | None
    """The run folder that the results belong to."""

    def load(self, parts: Parts) -> tuple[TurnEncoder, dict[str, Any]]:
        """Return the encoder, and a hash of its weights with the step that they are of."""
        from muco.training.model_folder import load_encoder, trained_steps, weights_hash

        quiet_libraries()
        if self.folder is None:
            encoder = _built(parts)
            return encoder, {"weights": _hash_of(encoder), "step": 0}
        encoder = load_encoder(cast(Any, parts), self.folder)
        return encoder, {"weights": weights_hash(self.folder), "step": trained_steps(self.folder)}


def find_model(model: str) -> ModelSource:
    """Return where a model comes from: a run folder, a model folder, or a backbone's name.

    Raises:
        MucoError: it is none of them.
    """
    from muco.training.model_folder import ABOUT

    path = Path(model)
    if (path / "recipe.yaml").is_file():
        recipe = RunFolder(path).recipe() or {}
        folder = RunFolder(path).model
        if not (folder / ABOUT).is_file():
            raise MucoError(f"{path}: the run has no model yet; train it first: muco-run {path}/recipe.yaml")
        settings = recipe.get("evaluate") or {}
        if not is_mapping(settings):
            raise MucoError(f"{path / 'recipe.yaml'}: `evaluate` must be a mapping; no run writes it so")
        return ModelSource(_values(folder, str(recipe.get("name")), settings), folder, path)
    if (path / ABOUT).is_file():
        return ModelSource(_values(path, path.resolve().name, {}), path, None)
    if path.exists():
        raise MucoError(
            f"{model}: neither a run folder (it has no recipe.yaml) nor a model folder (it has no muco.json)"
        )
    registry = default_registry()
    known = [entry.name for entry in registry.entries("backbone")]
    if model not in known:
        raise MucoError(
            f"{model}: no such folder, and no backbone of that name.{did_you_mean(model, known)}\n"
            f"Give a run folder, a model folder, or a backbone: {', '.join(known)}."
        )
    parts = {"packer": "single_turn", "backbone": {"name": model}, "pooler": "last_token"}
    return ModelSource({"name": model, **parts}, None, None)


def _values(folder: Path, name: str, evaluate_settings: dict[str, Any]) -> dict[str, Any]:
    from muco.training.model_folder import read_about

    saved = read_about(folder)
    return {
        "name": name,
        **{part: saved[part] for part in ("packer", "backbone", "pooler")},
        "evaluate": evaluate_settings,
    }


def _prepare(place: RunFolder, asked: Evaluation, source: ModelSource, weights: str) -> None:
    """Say in the folder what is evaluated there, unless it is a run's own; refuse one of another model."""
    import torch

    if place.recipe() is not None:
        if source.folder is None or source.folder.resolve() != place.model.resolve():
            raise MucoError(
                f"{place.path} is a run, with results of its own model. Give these results a folder of their "
                "own with --to."
            )
        return
    old = place.evaluation()
    if old is not None:
        changed = [part for part in ("packer", "backbone", "pooler") if old.get(part) != asked.dump()[part]]
        if changed:
            raise MucoError(
                f"{place.path} holds results of another model, with another {' and '.join(changed)}. "
                "Give these results a folder of their own with --to."
            )
        others = [suite for suite, scored in place.scored_weights().items() if scored != weights]
        if others:
            raise MucoError(
                f"{place.path} holds results of other weights ({', '.join(others)}). Give these results a "
                f"folder of their own with --to, or remove {place.eval}."
            )
    elif place.path.is_dir() and any(place.path.iterdir()):
        raise MucoError(f"{place.path} holds other files; give the results a folder of their own with --to")
    place.write_evaluation(asked)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place.write_environment(device=device, num_threads=torch.get_num_threads())


def _built(parts: Parts) -> TurnEncoder:
    import torch

    from muco.training.build import with_pooler

    torch.manual_seed(0)
    backbone = cast(Any, parts.backbone.cls).build(parts.backbone.config, texts=())
    return with_pooler(cast(Any, parts), backbone)


def _hash_of(encoder: TurnEncoder) -> str:
    """Return a hash of weights and processor: equal hash, equal embeddings."""
    import torch

    digest = blake2b(digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    with TemporaryDirectory() as folder:
        encoder.backbone.processor.save(Path(folder))
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
