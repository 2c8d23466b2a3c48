"""The schema of a recipe: which components make a run, and how it is trained and evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from muco.core.compatibility import backbones_offering, fixes, missing_in, offered_by
from muco.core.component import ComponentConfig
from muco.core.component_ref import ComponentRef
from muco.core.errors import MucoError, did_you_mean
from muco.core.ids import check_name
from muco.core.sampler import Sampler
from muco.io.columns import PairColumns

FileName = Annotated[str, AfterValidator(check_name)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


if TYPE_CHECKING:  # these import torch
    from muco.core.backbone import Backbone
    from muco.core.loss import Loss
    from muco.core.pooler import Pooler


class DatasetSettings(ComponentConfig):
    """One training data set: existing shards, or a source that is converted to shards on first use."""

    source: ComponentRef[Literal["source"]] | None = None
    """Converted to shards in the cache folder on first use; later runs reuse them."""
    shards: str | None = None
    """A folder of WebDataset shards with their index, or a URL of one that fsspec can open."""
    how_to_get: str | None = None
    """How to get the shards and how large they are; printed when they are missing."""
    columns: PairColumns | None = None
    """How to make a pair from a record, for shards that another tool wrote."""
    cache_gib: PositiveFloat = 50.0
    """Limit on local copies of shards at a URL, in GiB; the least recently read are removed first."""

    @model_validator(mode="after")
    def _check_source_or_shards(self) -> DatasetSettings:
        if (self.source is None) == (self.shards is None):
            raise ValueError("give either `source` or `shards`, not both or neither")
        if self.columns is not None and self.shards is None:
            raise ValueError("`columns` is for `shards` that another tool wrote")
        if self.columns is not None and self.columns.has_videos:
            raise ValueError("videos are read from tables, not from another tool's tars")
        return self

    @field_validator("shards")
    @classmethod
    def _refuse_programs(cls, shards: str | None) -> str | None:
        if shards is not None and (shards.strip().lower().startswith("pipe:") or "::" in shards):
            raise ValueError("`pipe:` and chained URLs (`::`) are refused; name a folder or a plain URL")
        return shards


class EarlyStopping(ComponentConfig):
    """When training stops before `num_steps`."""

    metric: str
    """As in summary.json: `scenes/mean`. Higher is better."""
    patience: PositiveInt
    """Validations in a row without an improvement after which training stops."""
    min_delta: NonNegativeFloat = 0.0
    """A score counts as an improvement if it is more than this above the best."""


class TrainSettings(ComponentConfig):
    """How the encoder is trained."""

    num_steps: PositiveInt
    """Optimizer updates. Training stops after them, in the middle of an epoch too."""
    global_batch_size: PositiveInt
    """Samples in a step's batch, over all processes."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the weights of linear layers, AdamW for all others; faster from random weights."""
    learning_rate: PositiveFloat
    """AdamW's peak learning rate."""
    muon_learning_rate: PositiveFloat = 0.02
    """Muon's peak learning rate."""
    learning_rate_scale: dict[str, NonNegativeFloat] | None = None
    """Factors of the learning rates, Muon's too, of weights whose names contain these parts:
    `{visual.trunk: 0.1}`. 0: not trained. If several fit a weight, the last one counts."""
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Muon's momentum; use less for a short run."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a half cosine to zero at `num_steps`."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's. Applied to matrices, not to biases, norms and embeddings, nor to what Muon trains."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients with a larger norm are scaled down to it."""
    max_dialogue_tokens: PositiveInt | None = None
    """Limit on the language-model tokens of one dialogue, images included. Turns beyond it are dropped
    whole, on both sides, and counted. None: no limit."""
    chunk_tokens: PositiveInt | Literal["auto"] | None = None
    """Limit on the language-model tokens (with padding, where there is any) and on the image patches encoded
    at once; dialogues of similar length are grouped. auto: what fits in the device's memory, measured on the
    first batch; with gradient checkpointing if the longest dialogue does not fit without it. None: each side
    of a batch is encoded at once."""
    grad_cache: bool = False
    """Store the activations of at most `held_tokens` tokens at a time, and encode the other chunks twice.
    The gradient is the same. False: the activations of the whole batch are stored."""
    held_tokens: PositiveInt | Literal["auto"] | None = None
    """With `grad_cache`: the tokens (or patches) whose activations are stored, at least those of one chunk.
    auto: what fits in the device's memory, measured on the first batch. None: `chunk_tokens`."""
    offload_image_features: bool = False
    """With `grad_cache` and a frozen vision tower: store its features in host memory between the passes."""
    gather_weights: Literal["step", "layer"] = "step"
    """Under FSDP, with several processes. step: gather all weights once a step. layer: gather each layer in
    each pass, with less memory and more communication; needs `grad_cache`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the device supports it, float32 on a CPU."""
    num_workers: NonNegativeInt = 0
    """Processes that read, pack and tokenize. The result does not depend on the number."""
    log_every: PositiveInt = 10
    """Steps between two lines of train.jsonl."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints; there is always one after the last step."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep; older ones are removed."""
    blind_probe: bool = False
    """After training, rank the targets of eight more batches with one picture in place of every image:
    `probe/blind` in summary.json is high if the packing gives the answers away. See `muco-run --probe`."""
    validate_every: PositiveInt | None = None
    """Steps between two validations: suites of `evaluate` scored while training. There is always one after
    the last step. The weights of a run do not depend on it. None: no validation."""
    validate_suites: tuple[str, ...] | None = None
    """Labels of the suites of `evaluate` that a validation scores. None: all."""
    validate_queries: PositiveInt | None = None
    """Queries of each task that a validation scores, evenly spaced. None: all."""
    keep_best: str | None = None
    """A metric of the validations, as in summary.json: `scenes/mean`. The checkpoint with the highest score
    is kept, and its model becomes the run's model. None: the last one's."""
    early_stopping: EarlyStopping | None = None
    """Stop training when a metric of the validations does not improve."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where figures are logged besides train.jsonl. wandb, mlflow and trackio are packages of their own."""
    max_broken_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """The run stops when a larger share of the samples so far could not be read; with fewer than 1,000
    samples so far, the share of 1,000."""

    @model_validator(mode="after")
    def _check_chunks(self) -> TrainSettings:
        if self.grad_cache and self.chunk_tokens is None:
            raise ValueError("`grad_cache: true` needs `chunk_tokens`, the size of a chunk")
        if not self.grad_cache and self.chunk_tokens == "auto":
            raise ValueError("`chunk_tokens: auto` needs `grad_cache: true`")
        if self.offload_image_features and not self.grad_cache:
            raise ValueError("`offload_image_features` needs `grad_cache: true`")
        if self.held_tokens is not None and not self.grad_cache:
            raise ValueError("`held_tokens` needs `grad_cache: true`")
        if self.gather_weights == "layer" and not self.grad_cache:
            raise ValueError("`gather_weights: layer` needs `grad_cache: true`")
        if self.gather_weights == "layer" and self.held_tokens is not None:
            raise ValueError("`held_tokens` has no use with `gather_weights: layer`, which stores one chunk")
        return self

    def held_limit(self, chunk_tokens: int) -> int | None:
        """Return how many tokens' activations cached gradients store; None if the run measures it."""
        if self.gather_weights == "layer":
            return 0  # all processes must encode equally often
        if self.held_tokens == "auto":
            return None
        return self.held_tokens or chunk_tokens

    @model_validator(mode="after")
    def _check_validation(self) -> TrainSettings:
        names = ("validate_suites", "validate_queries", "keep_best", "early_stopping")
        if self.validate_every is None and (given := [name for name in names if getattr(self, name)]):
            raise ValueError(f"`{given[0]}` needs `validate_every`, the steps between two validations")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError("`trackers` names one twice")
        return self

    @property
    def watched_metrics(self) -> dict[str, str]:
        """The metrics of validations that training depends on, by key of the recipe."""
        watched = {"keep_best": self.keep_best}
        watched["early_stopping.metric"] = self.early_stopping and self.early_stopping.metric
        return {f"train.{key}": metric for key, metric in watched.items() if metric is not None}


class EvaluateSettings(ComponentConfig):
    """What the trained encoder is scored on."""

    suites: tuple[ComponentRef[Literal["suite"]], ...] = ()
    """Suites to run after training, in this order."""

    @field_validator("suites")
    @classmethod
    def _check_unique(cls, suites: tuple[ComponentRef[Any], ...]) -> tuple[ComponentRef[Any], ...]:
        names = [suite.label for suite in suites]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"listed twice: {', '.join(repeated)}. Give each a `label` of its own")
        return suites

    batch_tokens: PositiveInt = 16384
    """Limit on language-model tokens and on image patches encoded at once."""
    join_turns: bool = True
    """Encode contents with the same images in one pass, isolated from each other, where the backbone offers
    `isolated_turns`. Each embedding equals that of a separate pass."""
    embedding_dtype: Literal["float32", "float16"] = "float32"
    """Dtype of the embeddings on disk; float16 takes half the space and rounds them."""
    ties: Literal["share", "first"] = "share"
    """share: candidates that tie at the top share the credit. first: the one listed first gets all of it,
    as in the public MMEB code, which lists the right answer first."""
    gallery_queries: NonNegativeInt = 4
    """Queries of each task that the report shows with their results."""


@dataclass(frozen=True)
class ModelSettings:
    """The components that decide an embedding. `Recipe.model` and `Evaluation.model` return them."""

    packer: ComponentRef[Literal["packer"]]
    backbone: ComponentRef[Literal["backbone"]]
    pooler: ComponentRef[Literal["pooler"]]

    def dump(self) -> dict[str, Any]:
        """Return them as plain data by kind, with every default filled in."""
        return {kind: getattr(self, kind).dump() for kind in ("packer", "backbone", "pooler")}


class _Run(ComponentConfig):
    """What a recipe and an evaluation have in common, without the fields: each has an order of its own."""

    @property
    def model(self) -> ModelSettings:
        """The components that decide an embedding."""
        return ModelSettings(*(getattr(self, kind) for kind in ("packer", "backbone", "pooler")))

    def dump(self) -> dict[str, Any]:
        """Return it as plain data with every default filled in; it validates to itself."""
        return self.model_dump(mode="json", exclude_none=True)


class Recipe(_Run):
    """A whole run: everything that decides its outcome."""

    name: FileName
    """Name of the run's folder, `runs/<name>`."""
    seed: NonNegativeInt = 0
    """Seeds the weights, the batches and the packing; data sets and suites have seeds of their own."""
    data: Annotated[dict[FileName, DatasetSettings], Field(min_length=1)]
    """Training data sets by name."""
    sampler: ComponentRef[Literal["sampler"]]
    packer: ComponentRef[Literal["packer"]]
    backbone: ComponentRef[Literal["backbone"]]
    pooler: ComponentRef[Literal["pooler"]]
    loss: ComponentRef[Literal["loss"]]
    train: TrainSettings
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _check_compatible(self) -> Recipe:
        sources = {f"data.{name}.source": data.source for name, data in self.data.items() if data.source}
        kinds = ("sampler", "packer", "backbone", "pooler", "loss")
        _check_dims(self.backbone, self.pooler, self.loss)
        try:
            cast(Sampler, self.sampler.make()).verify_settings(
                self.data, batch_size=self.train.global_batch_size
            )
        except MucoError as error:
            raise ValueError(str(error)) from None
        _check_compatible({**sources, **{kind: getattr(self, kind) for kind in kinds}}, self.evaluate)
        _check_validated_suites(self.train, [suite.label for suite in self.evaluate.suites])
        return self


class Evaluation(_Run):
    """The evaluation of a trained model: a recipe without its training."""

    name: FileName
    """Name of the results' folder, `runs/<name>`."""
    packer: ComponentRef[Literal["packer"]]
    backbone: ComponentRef[Literal["backbone"]]
    pooler: ComponentRef[Literal["pooler"]]
    evaluate: EvaluateSettings

    @model_validator(mode="after")
    def _check_compatible(self) -> Evaluation:
        # What a packer needs is for training; a single content is packed alike for every backbone.
        _check_compatible({"backbone": self.backbone, "pooler": self.pooler}, self.evaluate)
        return self


def _check_dims(backbone: ComponentRef[Any], pooler: ComponentRef[Any], loss: ComponentRef[Any]) -> None:
    """Raise ValueError if the loss needs larger embeddings than these settings give, where they are known."""
    hidden_dim = cast("type[Backbone]", backbone.cls).hidden_dim_of(backbone.config)
    dim = cast("type[Pooler]", pooler.cls).embedding_dim_of(pooler.config, hidden_dim)
    least = cast("type[Loss]", loss.cls).min_embedding_dim(loss.config)
    if dim is not None and least > dim:
        raise ValueError(
            f"loss `{loss.name}` as set here needs embeddings of at least {least} dimensions; the backbone "
            f"and the pooler give {dim}"
        )


def _check_validated_suites(train: TrainSettings, labels: list[str]) -> None:
    """Raise ValueError if `train` validates, or watches a metric of, a suite that is not evaluated."""
    if train.validate_every is None:
        return
    if not labels:
        raise ValueError("`train.validate_every` needs `evaluate.suites`, of which a validation scores some")
    for label in train.validate_suites or ():
        if label not in labels:
            raise ValueError(_no_suite("train.validate_suites", label, labels))
    for key, metric in train.watched_metrics.items():
        if metric.partition("/")[0] not in (validated := train.validate_suites or labels):
            raise ValueError(_no_suite(key, metric, [f"{label}/mean" for label in validated]))


def _no_suite(key: str, name: str, allowed: list[str]) -> str:
    hint = did_you_mean(name, allowed)
    return f"`{key}`: no validated suite gives {name!r}.{hint} Such as: {', '.join(allowed)}"


def _check_compatible(refs: dict[str, ComponentRef[Any]], evaluate: EvaluateSettings) -> None:
    """Raise ValueError if a component needs what no other offers; `refs` are by their keys in the recipe."""
    refs = {**refs, **{f"evaluate.suites.{index}": suite for index, suite in enumerate(evaluate.suites)}}
    components = {path: (ref.cls, ref.config) for path, ref in refs.items()}
    for path, missing in missing_in(components).items():
        works = fixes(components) or [f"`backbone.name: {name}`" for name in backbones_offering(*missing)]
        raise ValueError(
            f"{refs[path].kind} `{refs[path].name}` as set here needs {', '.join(missing)}, which no other "
            f"component offers (offered: {', '.join(sorted(offered_by(components))) or 'nothing'})"
            + (f". What works: {' or '.join(works)}" if works else "")
        )
