"""The base of backbones that can have adapters: add, save, load and merge them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import nn

from muco.core.backbone import Backbone
from muco.core.errors import DataError, MucoError
from muco.plugins.backbones.lora import (
    ADAPTER_FILE,
    AdaptedSettings,
    AdapterSettings,
    TokenRows,
    adapt,
    find_adapter,
    load_adapter,
    merge,
    read_settings,
    save_adapter,
    split_state,
)


class AdaptedBackbone(Backbone):
    """A backbone around a model whose towers can be frozen and have adapters."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.adapter: AdapterSettings | None = None
        """Settings of the adapters on the model; None without adapters."""
        self.rows: TokenRows | None = None

    @abstractmethod
    def adaptable(self, settings: AdapterSettings) -> Mapping[nn.Module, Sequence[str]]:
        """Return the modules to adapt, and for each the names of the linear layers that can have adapters.

        Raise MucoError if the settings ask for layers that this model does not have.
        """

    @abstractmethod
    def frozen(self, config: Any) -> Iterable[nn.Parameter]:
        """Return the weights to freeze besides those that adapters freeze."""

    def token_rows(self) -> TokenRows | None:
        """Return the rows of new tokens, trained beside the adapters; None by default."""
        return None

    def set_up(self, config: AdaptedSettings, *, start: str | None = None) -> Self:
        """Freeze and adapt the model by the settings, after its weights are loaded.

        `start` is the folder or hub name of the checkpoint of the weights, whose adapters are merged. Raise
        MucoError if the settings name layers that cannot be adapted, DataError if the checkpoint's adapters
        do not fit its weights.
        """
        file = None if start is None else find_adapter(start)
        if file is not None:
            self._merge_file(file)
        for weight in self.frozen(config):
            weight.requires_grad = False
        if config.adapter is not None:
            self._add_adapters(config.adapter)
        return self

    def merge_adapters(self) -> None:
        if self.adapter is None:
            return
        if self.rows is not None:
            self.rows.merge(self.model.get_input_embeddings())
        merge(self.model)
        self.rows = self.adapter = None

    def save_weights(self, folder: Path) -> dict[str, Any]:
        """Write the adapters, if there are any; return the other weights, named as without adapters."""
        folder.mkdir(parents=True, exist_ok=True)
        base, adapters = split_state(self.model)
        if self.adapter is not None:
            save_adapter(folder, adapters, self.rows, self.adapter)
        return base

    def read_adapter(self, folder: Path) -> None:
        """Load the adapters that `save_weights` wrote.

        Raise DataError if the folder has adapters and the settings have none, or the reverse, or they differ.
        """
        file = folder / ADAPTER_FILE
        if self.adapter is None:
            if file.is_file():
                raise DataError(f"{folder} has {ADAPTER_FILE}, but the settings say `adapter: null`")
            return
        if not file.is_file():
            raise DataError(
                f"{folder} has no {ADAPTER_FILE}; load weights without adapters with `adapter: null`"
            )
        load_adapter(file, self.model, self.rows)
        saved = read_settings(file)
        if saved.alpha != self.adapter.alpha:
            raise DataError(
                f"{file}: made with `alpha: {saved.alpha:g}`, but `adapter.alpha` is {self.adapter.alpha:g}"
            )

    def _add_adapters(self, settings: AdapterSettings) -> None:
        adapt(self.adaptable(settings), settings)
        self.rows = self.token_rows()
        self.adapter = settings

    def _merge_file(self, file: Path) -> None:
        """Merge the adapters of a file into the model's weights; all weights are trainable afterwards."""
        settings = read_settings(file)
        try:
            self._add_adapters(settings)
            load_adapter(file, self.model, self.rows)
            self.merge_adapters()
        except MucoError as error:
            raise DataError(f"backbone.pretrained: its adapters cannot be merged: {error}") from error
        except ValueError as error:  # from peft, if weights are not finite
            raise DataError(f"backbone.pretrained: {file}: {error}") from error
        self.requires_grad_(True)
