"""LoRA adapters of peft on frozen linear layers, and trained embedding rows of new tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from torch import Tensor, nn

from muco.core.component import ComponentConfig
from muco.core.errors import DataError, MucoError
from muco.core.layers import Linear
from muco.io.safetensors_header import sort_header
from muco.plugins.backbones.checkpoint import check_fit, read_weights

ADAPTER_FILE = "adapter.safetensors"
_SETTINGS = "adapter"
"""Key of the file's metadata that holds the settings, as JSON."""
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")
"""Attributes of a peft layer that hold the weights of its adapter."""
_NAME = "default"


class AdapterSettings(ComponentConfig):
    """LoRA adapters on the language model, or on CLIP's text tower. The defaults are those of the public MuCo
    code.

    References:
        Hu et al. 2021, arXiv:2106.09685: LoRA.
        Liu et al. 2024, arXiv:2402.09353: DoRA.
    """

    rank: PositiveInt = 16
    """Rank of the update B A of each weight matrix."""
    alpha: PositiveFloat = 64.0
    """The update is multiplied by `alpha / rank`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout probability of an adapter's inputs in training."""
    dora: bool = True
    """DoRA: train the length of each row of the weight apart from its direction."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """Initialization of A. B is initialized to zero."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Last parts of the names of the linear layers to adapt, such as `q_proj`; null: all linear layers."""
    vision: bool = False
    """Adapt the vision tower too."""


class AdaptedSettings(ComponentConfig):
    """Which weights are trained; part of the settings of every backbone."""

    adapter: AdapterSettings | None = None
    """Train LoRA adapters and the embedding rows of the new tokens; all other weights are frozen."""
    freeze_vision: bool | None = None
    """Freeze the vision tower: its features are computed once a step, without gradient. null: frozen if there
    is an adapter. false with an adapter: the whole tower is trained."""

    @model_validator(mode="after")
    def _vision_is_trained_one_way(self) -> AdaptedSettings:
        if self.adapter is not None and self.adapter.vision and self.freeze_vision is not None:
            raise ValueError(
                "`adapter.vision` puts adapters on a frozen vision tower; leave `freeze_vision` at null"
            )
        return self

    @property
    def vision_is_frozen(self) -> bool:
        """Whether the vision tower's own weights are frozen."""
        return self.adapter is not None if self.freeze_vision is None else self.freeze_vision


class TokenRows(nn.Embedding):
    """Trained embeddings of a few tokens, which replace their rows of a frozen matrix; at least float32."""

    token_ids: Tensor

    def __init__(self, embedding: nn.Embedding, token_ids: Sequence[int]) -> None:
        """Copy the rows of `embedding`."""
        rows = embedding.weight.detach()[list(token_ids)]
        dtype = torch.promote_types(rows.dtype, torch.float32)
        super().__init__(len(rows), rows.shape[1], _weight=rows.to(dtype), _freeze=False)
        self.register_buffer("token_ids", torch.tensor(token_ids), persistent=False)

    def forward(self, input_ids: Tensor, embeds: Tensor) -> Tensor:  # type: ignore[override]
        """Return `embeds` [..., H] of the tokens [...], those of the trained tokens replaced."""
        matches = input_ids[..., None] == self.token_ids
        trained = super().forward(matches.int().argmax(-1)).to(embeds.dtype)
        return torch.where(matches.any(-1, keepdim=True), trained, embeds)

    @torch.no_grad()
    def merge(self, embedding: nn.Embedding) -> None:
        """Write the rows into the matrix that they replace."""
        embedding.weight[self.token_ids] = self.weight.to(embedding.weight.dtype)


def adapted_linear(linear: Linear, settings: AdapterSettings) -> Linear:
    """Return a frozen layer as `adapt` would change it, to count its FLOPs."""
    if settings.targets is not None and not any(_matches(linear.name, each) for each in settings.targets):
        return linear
    # DoRA multiplies the weight with the rows after dropout once more.
    base_calls = 2 if settings.dora and settings.dropout else 1
    return replace(linear, rank=settings.rank, base_calls=base_calls, dora=settings.dora)


def linear_layers(module: nn.Module) -> list[str]:
    """Return the names of the linear layers in a module."""
    return [name for name, each in module.named_modules() if isinstance(each, nn.Linear)]


def adapt(layers: Mapping[nn.Module, Sequence[str]], settings: AdapterSettings) -> None:
    """Freeze the modules and put adapters, at least float32, on their linear layers.

    `layers` has the names of the layers of each module that can be adapted; `settings.targets` chooses among
    them. Raise MucoError if a target matches no layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    known = sorted({name for names in layers.values() for name in names})
    targets = known if settings.targets is None else settings.targets
    for target in targets:
        if not any(_matches(name, target) for name in known):
            raise MucoError(
                f"backbone.adapter.targets: no linear layer's name ends in {target!r}; allowed are "
                f"{', '.join(last_parts(known))}"
            )
    for module, names in layers.items():
        module.requires_grad_(False)
        chosen = [name for name in names if any(_matches(name, target) for target in targets)]
        if not chosen:
            continue
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.dropout,
            use_dora=settings.dora,
            init_lora_weights="gaussian" if settings.init == "gaussian" else True,
            target_modules=chosen,
        )
        inject_adapter_in_model(config, module, adapter_name=_NAME)
        for layer in _adapted_layers(module).values():
            _to_float32(layer)


def last_parts(names: Iterable[str]) -> list[str]:
    """Return the last part of each layer's name, once: what `targets` takes."""
    return sorted({name.rpartition(".")[2] for name in names})


def merge(module: nn.Module) -> None:
    """Merge the adapters into the weights that they adapt, which keep their dtype, and remove them."""
    for name, layer in _adapted_layers(module).items():
        layer.merge(safe_merge=True)
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, layer.base_layer)
    for each in module.modules():
        vars(each).pop("peft_config", None)  # or peft warns of a second adapter


def split_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a module's weights, named as without adapters, and the weights of its adapters."""
    base, adapters = dict[str, Tensor](), dict[str, Tensor]()
    for name, weight in module.state_dict().items():
        if any(f".{part}." in name for part in _PARTS):
            adapters[name] = weight
        else:
            base[name.replace(".base_layer", "")] = weight  # peft's name of the wrapped layer
    return base, adapters


def save_adapter(
    folder: Path, weights: Mapping[str, Tensor], rows: TokenRows | None, settings: AdapterSettings
) -> None:
    """Write the adapters' weights, the rows, and the settings that made them to `ADAPTER_FILE`."""
    from safetensors.torch import save_file

    save_file(
        {name: weight.contiguous() for name, weight in {**weights, **_row_weights(rows)}.items()},
        folder / ADAPTER_FILE,
        metadata={"format": "pt", _SETTINGS: settings.model_dump_json()},
    )
    sort_header(folder / ADAPTER_FILE)


def find_adapter(name: str) -> Path | None:
    """Return the adapter file of a checkpoint, a folder or a hub name; None if it has none."""
    from transformers.utils.hub import cached_file, has_file

    file = cached_file(name, ADAPTER_FILE) if has_file(name, ADAPTER_FILE) else None
    return None if file is None else Path(file)


def read_settings(file: Path) -> AdapterSettings:
    """Return the settings that made the adapters of a file.

    Raise DataError if the metadata has no valid settings, or their rank is not that of the weights.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(_SETTINGS)
            names = [name for name in opened.keys() if ".lora_A." in name]  # noqa: SIM118
            ranks = {opened.get_slice(name).get_shape()[0] for name in names}
    except SafetensorError as error:
        raise DataError(f"{file}: it cannot be read: {error}") from error
    if text is None:
        raise DataError(
            f"{file}: its metadata has no {_SETTINGS!r}, the settings that made the adapters. Save it by "
            "`Backbone.save`, or start from a checkpoint whose adapters are merged."
        )
    try:
        settings = AdapterSettings.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise DataError(f"{file}: {_SETTINGS!r} of its metadata is not valid. {problems}") from error
    if ranks != {settings.rank}:
        actual = ", ".join(map(str, sorted(ranks))) or "none"
        raise DataError(f"{file}: its metadata says rank {settings.rank}, its weights have rank {actual}")
    return settings


def load_adapter(file: Path, module: nn.Module, rows: TokenRows | None) -> None:
    """Load what `save_adapter` wrote into a module with adapters of the same settings.

    Raise DataError if a weight is missing, unexpected or of another shape.
    """
    weights = read_weights(file)
    expected = {**split_state(module)[1], **_row_weights(rows)}
    check_fit(weights, expected, f"{file}: the weights do not fit the settings of the adapter")
    for name, weight in expected.items():
        weight.copy_(weights[name])


def _row_weights(rows: TokenRows | None) -> dict[str, Tensor]:
    return {} if rows is None else rows.state_dict(prefix="rows.")


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _adapted_layers(module: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: each for name, each in module.named_modules() if isinstance(each, LoraLayer)}


def _to_float32(layer: Any) -> None:
    """Make the adapters of 16-bit weights float32; peft makes them in the dtype of the weight."""
    weight = layer.base_layer.weight.detach()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    for part in _PARTS:
        getattr(layer, part).to(dtype)
    if _NAME in layer.lora_magnitude_vector:
        # In 16 bits, rounded lengths would change the model before the first step.
        layer.lora_magnitude_vector[_NAME].weight.data = weight.to(dtype).norm(dim=1)
