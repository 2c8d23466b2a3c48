"""Adapters: low-rank maps beside a tower's frozen linear maps, by peft, and new tokens' own rows.

`AdaptedBackbone` puts them on, saves them beside the frozen weights, and merges them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from torch import Tensor, nn

from muco.core.component import ComponentConfig
from muco.core.errors import DataError, MucoError
from muco.plugins.backbones.checkpoint import check_fit, read_weights

ADAPTER_FILE = "adapter.safetensors"
_SETTINGS = "adapter"
"""The key of the file's metadata that holds the settings, as JSON."""
_INNER = ".base_layer"
"""What peft puts into the name of a weight that it wraps."""
_OWN = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.")
_NAME = "default"


class AdapterSettings(ComponentConfig):
    """Low-rank adapters on the linear maps of the language model, or of CLIP's text tower; the defaults are
    those of the public MuCo code.

    References:
        Hu et al. 2021, arXiv:2106.09685: LoRA.
        Liu et al. 2024, arXiv:2402.09353: DoRA.
    """

    rank: PositiveInt = 16
    """Of the update B A of each weight matrix."""
    alpha: PositiveFloat = 64.0
    """The update is multiplied by `alpha / rank`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of an adapter's inputs that is left out in training."""
    dora: bool = True
    """Train the length of each row of the weight apart from its direction."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """Of A; B starts at zero, so that an adapter starts as nothing."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Ends of the names of the linear maps to adapt, `q_proj` say; null: all of them."""
    vision: bool = False
    """Adapt the vision tower's linear maps too."""


class AdaptedSettings(ComponentConfig):
    """What is trained; part of the settings of every backbone."""

    adapter: AdapterSettings | None = None
    """Train low-rank adapters and the rows of the new tokens, and leave all other weights as they are."""
    freeze_vision: bool | None = None
    """Leave the vision tower as it is: its features are computed once a step, without gradient. null: where
    there is an adapter. false beside an adapter: the whole tower is trained."""

    @model_validator(mode="after")
    def _one_way_for_the_tower(self) -> AdaptedSettings:
        if self.adapter is not None and self.adapter.vision and self.freeze_vision is not None:
            raise ValueError(
                "`adapter.vision` trains adapters on a tower that is frozen; leave `freeze_vision` at null"
            )
        return self

    @property
    def vision_is_frozen(self) -> bool:
        """Whether the vision tower's own weights stay as they are."""
        return self.adapter is not None if self.freeze_vision is None else self.freeze_vision


class TokenRows(nn.Embedding):
    """The embeddings of a few tokens, trained in place of their rows in a frozen matrix; float32 or finer."""

    token_ids: Tensor

    def __init__(self, embedding: nn.Embedding, token_ids: Sequence[int]) -> None:
        """Start from the rows of `embedding`, which is not kept."""
        rows = embedding.weight.detach()[list(token_ids)]
        dtype = torch.promote_types(rows.dtype, torch.float32)
        super().__init__(len(rows), rows.shape[1], _weight=rows.to(dtype), _freeze=False)
        self.register_buffer("token_ids", torch.tensor(token_ids), persistent=False)

    def forward(self, input_ids: Tensor, embeds: Tensor) -> Tensor:  # type: ignore[override]
        """Return the embeddings [..., H] of the tokens [...] with the trained ones in their places."""
        is_own = input_ids[..., None] == self.token_ids
        own = super().forward(is_own.int().argmax(-1)).to(embeds.dtype)
        return torch.where(is_own.any(-1, keepdim=True), own, embeds)

    @torch.no_grad()
    def merge(self, embedding: nn.Embedding) -> None:
        """Write the rows into the matrix that they stand for."""
        embedding.weight[self.token_ids] = self.weight.to(embedding.weight.dtype)


def linear_maps(module: nn.Module) -> list[str]:
    """Return the names of the linear maps in a module."""
    return [name for name, each in module.named_modules() if isinstance(each, nn.Linear)]


def adapt(maps: Mapping[nn.Module, Sequence[str]], settings: AdapterSettings) -> None:
    """Freeze modules' weights and put adapters, float32 or finer, on their linear maps.

    Args:
        maps: the modules, and of each the names of the linear maps that adapters fit.
        settings: which of them, and how.

    Raises:
        MucoError: a target names no linear map of any.
    """
    from peft import LoraConfig, inject_adapter_in_model

    known = sorted({name for names in maps.values() for name in names})
    targets = known if settings.targets is None else settings.targets
    for target in targets:
        if not any(_ends(name, target) for name in known):
            raise MucoError(
                f"backbone.adapter.targets: no linear map ends in {target!r}; there are "
                f"{', '.join(ends_of(known))}"
            )
    for module, names in maps.items():
        module.requires_grad_(False)
        own = [name for name in names if any(_ends(name, target) for target in targets)]
        if not own:
            continue
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.dropout,
            use_dora=settings.dora,
            init_lora_weights="gaussian" if settings.init == "gaussian" else True,
            target_modules=own,
        )
        inject_adapter_in_model(config, module, adapter_name=_NAME)
        for layer in _layers(module):
            _to_full_precision(layer)


def ends_of(names: Iterable[str]) -> list[str]:
    """Return the last parts of the names of linear maps, each once: what `targets` takes."""
    return sorted({name.rpartition(".")[2] for name in names})


def merge(module: nn.Module) -> None:
    """Fold the adapters into the weights that they adapt, which keep their dtype; none are left."""
    for name, layer in [(name, each) for name, each in module.named_modules() if _is_adapted(each)]:
        layer.merge(safe_merge=True)  # type: ignore[operator]
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, layer.base_layer)
    for each in module.modules():
        vars(each).pop("peft_config", None)  # or peft would warn of a second adapter


def adapter_modules(module: nn.Module) -> list[nn.Module]:
    """Return the modules that hold the adapters' weights, whose dtype may not be that of the others."""
    held = ("lora_A", "lora_B", "lora_magnitude_vector")
    parts = [getattr(layer, name) for layer in _layers(module) for name in held]
    return [part[_NAME] for part in parts if _NAME in part]


def split_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a module's weights under the names of one without adapters, and those of its adapters."""
    base, own = dict[str, Tensor](), dict[str, Tensor]()
    for name, weight in module.state_dict().items():
        if any(part in name for part in _OWN):
            own[name] = weight
        else:
            base[name.replace(_INNER, "")] = weight
    return base, own


def save_adapter(
    folder: Path, weights: Mapping[str, Tensor], rows: TokenRows | None, settings: AdapterSettings
) -> None:
    """Write the adapters' weights, the rows, and the settings that made them to `ADAPTER_FILE`."""
    from safetensors.torch import save_file

    whole = {**weights, **_state(rows)}
    save_file(
        {name: weight.contiguous() for name, weight in whole.items()},
        folder / ADAPTER_FILE,
        metadata={"format": "pt", _SETTINGS: settings.model_dump_json()},
    )


def find_adapter(name: str) -> Path | None:
    """Return the file of a checkpoint's adapters; None where it has none.

    Args:
        name: folder or hub name of a checkpoint that is there.
    """
    from transformers.utils.hub import cached_file, has_file

    found = cached_file(name, ADAPTER_FILE) if has_file(name, ADAPTER_FILE) else None
    return None if found is None else Path(found)


def read_settings(file: Path) -> AdapterSettings:
    """Return the settings that made the adapters of a file.

    Raises:
        DataError: it does not say them, or they are not those of its weights.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            told, names = (opened.metadata() or {}).get(_SETTINGS), opened.keys()
            first = [name for name in names if ".lora_A." in name]
            ranks = {opened.get_slice(name).get_shape()[0] for name in first}
    except SafetensorError as error:
        raise DataError(f"{file}: it cannot be read: {error}") from error
    if told is None:
        raise DataError(
            f"{file}: its metadata lack {_SETTINGS!r}, the settings that made the adapters. Save it by "
            "`Backbone.save`, or start from a checkpoint whose adapters are merged."
        )
    try:
        settings = AdapterSettings.model_validate_json(told)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise DataError(f"{file}: {_SETTINGS!r} of its metadata is not valid. {problems}") from error
    if ranks != {settings.rank}:
        held = ", ".join(map(str, sorted(ranks))) or "none"
        raise DataError(f"{file}: its metadata tell of rank {settings.rank}, its weights are of {held}")
    return settings


def load_adapter(file: Path, module: nn.Module, rows: TokenRows | None) -> None:
    """Read what `save_adapter` wrote into a module that was adapted alike.

    Raises:
        DataError: a weight is missing, unexpected or of another shape.
    """
    found = read_weights(file)
    expected = {**split_state(module)[1], **_state(rows)}
    check_fit(found, expected, f"{file}: the weights do not fit the settings of the adapter")
    for name, weight in expected.items():
        weight.copy_(found[name])


def _state(rows: TokenRows | None) -> dict[str, Tensor]:
    return {} if rows is None else rows.state_dict(prefix="rows.")


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _is_adapted(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def _layers(module: nn.Module) -> Iterable[Any]:
    return [each for each in module.modules() if _is_adapted(each)]


def _to_full_precision(layer: Any) -> None:
    """Let the adapters of 16-bit weights be float32; peft makes them in the dtype of the weight."""
    weight = layer.base_layer.weight.detach()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        part.to(dtype)
    if _NAME in layer.lora_magnitude_vector:
        # Rounded to 16 bits the lengths would change the model before the first step.
        layer.lora_magnitude_vector[_NAME].weight.data = weight.to(dtype).norm(dim=1)
