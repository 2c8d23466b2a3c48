"""The schema of a recipe: which components make a run, and how it is trained and evaluated."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

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
from pydantic_core import PydanticCustomError

from muco.core.compatibility import backbones_offering, missing_in, offered_by, remedies
from muco.core.component import ComponentConfig, Feature
from muco.core.component_ref import ComponentRef
from muco.io.columns import PairColumns


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError("use letters, digits, '.', '_' and '-' only: it names the run's folder")
    return name


class DatasetSettings(ComponentConfig):
    """One data set: shards that exist, or a source that shards are made from on first use."""

    source: ComponentRef[Literal["source"]] | None = None
    """Made into shards in the cache folder on first use, and reused."""
    shards: str | None = None
    """Folder of WebDataset shards with their index, or the URL of one that fsspec can open."""
    how_to_get: str | None = None
    """How to get the shards and how large they are; told where they are missing."""
    columns: PairColumns | None = None
    """What makes a pair of a record, where another tool wrote the shards."""
    cache_gib: PositiveFloat = 50.0
    """The most that shards at a URL take on this machine's disk; those unread longest go first."""

    @model_validator(mode="after")
    def _one_of_both(self) -> DatasetSettings:
        if (self.source is None) == (self.shards is None):
            raise PydanticCustomError("one_of", "give either `source` or `shards`, not both or neither")
        if self.columns is not None and self.shards is None:
            raise PydanticCustomError("one_of", "`columns` goes with `shards` that another tool wrote")
        if self.columns is not None and self.columns.has_videos:
            raise PydanticCustomError("videos", "videos are read from tables, not from another tool's tars")
        return self

    @field_validator("shards")
    @classmethod
    def _no_program(cls, shards: str | None) -> str | None:
        if shards is not None and (shards.strip().lower().startswith("pipe:") or "::" in shards):
            raise ValueError("`pipe:` and chained URLs (`::`) are refused; name a folder or a plain URL")
        return shards


Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainSettings(ComponentConfig):
    """How the encoder is trained."""

    num_steps: PositiveInt
    """Optimizer updates; the run stops there, within an epoch or after several."""
    global_batch_size: PositiveInt
    """Samples of a step's global batch, over all ranks."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the weights of linear maps, AdamW for all others; learns from random weights sooner."""
    learning_rate: PositiveFloat
    """AdamW's, at the peak of the schedule."""
    muon_learning_rate: PositiveFloat = 0.02
    """Muon's, at the peak of the schedule."""
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Muon's; less where a run is short."""
    warmup_steps: NonNegativeInt = 0
    """The learning rate rises linearly from 0 over these."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a half cosine to zero at `num_steps`."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's; on matrices, not on biases, norms and embeddings, nor on what Muon trains."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    max_dialogue_tokens: PositiveInt | None = None
    """The most language-model tokens of one dialogue, images included: turns beyond are left out whole, on
    both sides, and counted. None keeps all."""
    chunk_tokens: PositiveInt | Literal["auto"] | None = None
    """The most language-model tokens (padding, where rows are padded, included) and image patches encoded
    at once: dialogues of like lengths go together. auto: what fits the device's memory, measured on the
    first batch. None encodes a side at once."""
    grad_cache: bool = False
    """Keep the activations of one chunk of `chunk_tokens` at a time and encode every chunk twice; the
    gradient is the same. False keeps the activations of the whole batch."""
    offload_image_features: bool = False
    """With cached gradients and a frozen vision tower: keep its features on the host between the passes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the device has it, float32 on a CPU."""
    num_workers: NonNegativeInt = 0
    """Processes that read, pack and tokenize; the result does not depend on it."""
    log_every: PositiveInt = 10
    """Steps a line of train.jsonl."""
    checkpoint_every: PositiveInt = 500
    """Steps a checkpoint; the last step always has one."""
    keep_checkpoints: PositiveInt = 2
    """Older ones are removed."""
    max_broken_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """The run stops when a larger share of the samples so far (of 1,000 at least) cannot be read."""

    @model_validator(mode="after")
    def _cached_in_chunks(self) -> TrainSettings:
        if self.grad_cache and self.chunk_tokens is None:
            raise PydanticCustomError(
                "cached", "`grad_cache: true` needs `chunk_tokens`, the size of a chunk"
            )
        if not self.grad_cache and self.chunk_tokens == "auto":
            raise PydanticCustomError(
                "auto_chunks", "`chunk_tokens: auto` needs `grad_cache: true`: without it every chunk is kept"
            )
        if self.offload_image_features and not self.grad_cache:
            raise PydanticCustomError("offload", "`offload_image_features` needs `grad_cache: true`")
        return self


class EvaluateSettings(ComponentConfig):
    """What the trained encoder is scored on."""

    suites: tuple[ComponentRef[Literal["suite"]], ...] = ()
    """Run in order after training."""

    @field_validator("suites")
    @classmethod
    def _each_once(cls, suites: tuple[ComponentRef[Any], ...]) -> tuple[ComponentRef[Any], ...]:
        names = [suite.name for suite in suites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"listed twice: {', '.join(twice)}; each suite has one result file")
        return suites

    batch_tokens: PositiveInt = 16384
    """Language-model tokens and image patches that are encoded at once."""
    join_turns: bool = True
    """Contents with the same images are encoded in one pass, isolated from each other, where the backbone
    offers `isolated_turns`; each embedding is that of a pass of its own."""
    embedding_dtype: Literal["float32", "float16"] = "float32"
    """How embeddings are kept on disk; float16 is half as large and rounds them."""
    ties: Literal["share", "first"] = "share"
    """share: candidates that tie at the top share the credit. first: the one listed first has it all,
    as in public MMEB code, which lists the right one first."""
    gallery_queries: NonNegativeInt = 4
    """Queries of each task that the report shows with what they retrieved."""


class Recipe(ComponentConfig):
    """A run, whole: everything that decides its outcome."""

    name: Annotated[str, AfterValidator(_check_name)]
    """Names the run's folder, `runs/<name>`."""
    seed: NonNegativeInt = 0
    """Of the weights, the plan and the packing; data sets and suites have seeds of their own."""
    data: Annotated[dict[str, DatasetSettings], Field(min_length=1)]
    """Training data sets by name."""
    sampler: ComponentRef[Literal["sampler"]]
    packer: ComponentRef[Literal["packer"]]
    backbone: ComponentRef[Literal["backbone"]]
    pooler: ComponentRef[Literal["pooler"]]
    loss: ComponentRef[Literal["loss"]]
    train: TrainSettings
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _components_fit(self) -> Recipe:
        _check_fit(self._refs())
        return self

    def _refs(self) -> dict[str, ComponentRef[Any]]:
        """Return the components by their keys in the recipe."""
        refs: dict[str, ComponentRef[Any]] = {
            f"data.{name}.source": settings.source
            for name, settings in self.data.items()
            if settings.source is not None
        }
        step = ("sampler", "packer", "backbone", "pooler", "loss")
        refs |= {kind: getattr(self, kind) for kind in step}
        return refs | {f"evaluate.suites.{place}": ref for place, ref in enumerate(self.evaluate.suites)}

    def dump(self) -> dict[str, Any]:
        """Return the resolved recipe as plain data, defaults filled in; it validates to itself."""
        return self.model_dump(mode="json", exclude_none=True)


class Evaluation(ComponentConfig):
    """A model that is scored as it is: a recipe without its training."""

    name: Annotated[str, AfterValidator(_check_name)]
    """Names the folder of the results, `runs/<name>`."""
    packer: ComponentRef[Literal["packer"]]
    backbone: ComponentRef[Literal["backbone"]]
    pooler: ComponentRef[Literal["pooler"]]
    evaluate: EvaluateSettings

    @model_validator(mode="after")
    def _components_fit(self) -> Evaluation:
        # What a packer needs is for training; a single content is packed alike for every backbone.
        suites = {f"evaluate.suites.{place}": ref for place, ref in enumerate(self.evaluate.suites)}
        _check_fit({"backbone": self.backbone, "pooler": self.pooler, **suites})
        return self

    def dump(self) -> dict[str, Any]:
        """Return it as plain data, defaults filled in; it validates to itself."""
        return self.model_dump(mode="json", exclude_none=True)


def _other_backbones(missing: list[Feature]) -> str:
    """Return the choices of backbone that offer what is missing; empty where none offers all of it."""
    able = [backbones_offering(feature) for feature in missing]
    return " or ".join(f"`backbone.name: {name}`" for name in able[0] if all(name in each for each in able))


def _check_fit(refs: dict[str, ComponentRef[Any]]) -> None:
    """Raise where a component needs what no other offers; `refs` by their keys in the recipe."""
    parts = {path: (ref.cls, ref.config) for path, ref in refs.items()}
    for path, missing in missing_in(parts).items():
        mended = " or ".join(remedies(parts)) or _other_backbones(missing)
        raise PydanticCustomError(
            "features",
            "{kind} `{name}` as set here needs {missing}, which no other component offers "
            "(offered: {offered}){mended}",
            {
                "kind": refs[path].kind,
                "name": refs[path].name,
                "missing": ", ".join(missing),
                "offered": ", ".join(sorted(offered_by(parts))) or "nothing",
                "mended": f". What works: {mended}" if mended else "",
            },
        )
