"""A backbone that can be adapted: adapters put on, saved, loaded, merged, and merged where a run starts."""

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
    """A backbone around a model some towers of which are adapted, if the settings say so."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.adapter: AdapterSettings | None = None
        """Of the adapters that are on the model."""
        self.rows: TokenRows | None = None

    @abstractmethod
    def adaptable(self, settings: AdapterSettings) -> Mapping[nn.Module, Sequence[str]]:
        """Return the modules to adapt, and of each the names of the linear maps that adapters fit.

        Raises:
            MucoError: the settings ask for what this model has not.
        """

    @abstractmethod
    def frozen(self, config: Any) -> Iterable[nn.Parameter]:
        """Return the weights that stay as they are, besides those that adapters freeze."""

    def token_rows(self) -> TokenRows | None:
        """Return rows of new tokens, to be trained beside the adapters; none by default."""
        return None

    def set_up(self, config: AdaptedSettings, *, start: str | None = None) -> Self:
        """Freeze and adapt what the settings say, once the model has its weights.

        Args:
            config: of the subclass.
            start: folder or hub name of the checkpoint that the weights are from; its adapters are merged.

        Raises:
            MucoError: the settings name what cannot be adapted.
            DataError: the checkpoint's adapters do not fit it.
        """
        file = None if start is None else find_adapter(start)
        if file is not None:
            self._merge_saved(file)
        for weight in self.frozen(config):
            weight.requires_grad = False
        if config.adapter is not None:
            self._put_on(config.adapter)
        return self

    def merge_adapters(self) -> None:
        if self.adapter is None:
            return
        if self.rows is not None:
            self.rows.merge(self.model.get_input_embeddings())
        merge(self.model)
        self.rows = self.adapter = None

    def save_weights(self, folder: Path) -> dict[str, Any]:
        """Write the adapters, if there are any; return the other weights under their own names."""
        folder.mkdir(parents=True, exist_ok=True)
        base, own = split_state(self.model)
        if self.adapter is not None:
            save_adapter(folder, own, self.rows, self.adapter)
        return base

    def read_adapter(self, folder: Path) -> None:
        """Read the adapters that `save_weights` wrote.

        Raises:
            DataError: there are none where the settings have some, some where they have none, or others.
        """
        file = folder / ADAPTER_FILE
        if self.adapter is None:
            if file.is_file():
                raise DataError(f"{folder}: {ADAPTER_FILE} is here, and the settings have `adapter: null`")
            return
        if not file.is_file():
            raise DataError(
                f"{folder}: no {ADAPTER_FILE} here; weights without adapter go with `adapter: null`"
            )
        load_adapter(file, self.model, self.rows)
        made = read_settings(file)
        if made.alpha != self.adapter.alpha:
            raise DataError(
                f"{file}: made with `alpha: {made.alpha:g}`, and `adapter.alpha` is {self.adapter.alpha:g}"
            )

    def _put_on(self, settings: AdapterSettings) -> None:
        adapt(self.adaptable(settings), settings)
        self.rows = self.token_rows()
        self.adapter = settings

    def _merge_saved(self, file: Path) -> None:
        """Fold the adapters of a file into the weights that it stands beside, all of which are trainable."""
        settings = read_settings(file)
        try:
            self._put_on(settings)
            load_adapter(file, self.model, self.rows)
            self.merge_adapters()
        except MucoError as error:
            raise DataError(f"backbone.pretrained: its adapters cannot be merged: {error}") from error
        except ValueError as error:  # of peft, where weights are not finite
            raise DataError(f"backbone.pretrained: {file}: {error}") from error
        self.requires_grad_(True)
