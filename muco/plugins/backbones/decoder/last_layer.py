"""The last layer of a decoder, computed only for the tokens whose states are read."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class _Call(threading.local):
    """The call that runs. Each thread has its own, because several may encode with one model."""

    tokens: Tensor | None = None
    """Those that are read; None for all."""
    rows = torch.Size()
    """The shape of the states without their size."""


_CALL = _Call()


class LastLayer:
    """Computes queries, the output of attention and the feed-forward for M of T tokens.

    Keys and values are those of all tokens, so the states of the M tokens do not change. The tokens are the
    argument `read_tokens` of the language model's forward: int64 [M], indices into the concatenated rows, or
    None for all.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def attach(self, layer: Any) -> None:
        """Attach to a layer of transformers, and to the modules that it has now in place of earlier ones.

        A layer without these modules, as that of Phi-3, is computed for all tokens.
        """
        for handle in self._handles:
            handle.remove()
        attention, self._handles = layer.self_attn, []
        if not (hasattr(attention, "q_proj") and hasattr(attention, "o_proj") and hasattr(layer, "mlp")):
            return
        # Hooks of the layer itself would not run again when gradient checkpointing computes it again.
        self._handles = [attention.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for module in (attention.q_proj, attention.o_proj, layer.mlp):
            self._handles.append(module.register_forward_pre_hook(self._select))
            self._handles.append(module.register_forward_hook(self._insert))

    def _begin(self, _attention: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        _CALL.tokens = kwargs.get("read_tokens")

    def _select(self, _module: nn.Module, args: tuple[Tensor]) -> Tensor | None:
        if _CALL.tokens is None:
            return None
        _CALL.rows = args[0].shape[:-1]
        return args[0].flatten(0, -2).index_select(0, _CALL.tokens)[None]

    def _insert(self, _module: nn.Module, _args: Any, states: Tensor) -> Tensor | None:
        if _CALL.tokens is None:
            return None
        zeros = states.new_zeros(_CALL.rows.numel(), states.shape[-1])
        return zeros.index_copy(0, _CALL.tokens, states[0]).unflatten(0, _CALL.rows)
