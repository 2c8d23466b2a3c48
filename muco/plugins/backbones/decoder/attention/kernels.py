"""The settings of rows and attention, and the choice of the kernel."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator

from muco.core.component import ComponentConfig, Feature
from muco.core.dialogue import Dialogue
from muco.core.errors import MucoError

Kernel = Literal["auto", "flash_varlen", "flex", "sdpa"]
AttentionDirection = Literal["causal", "bidirectional", "bidirectional_isolated"]


class RowSettings(ComponentConfig):
    """How dialogues become rows: a part of the settings of every decoder backbone."""

    rows: Literal["packed", "padded"] = "packed"
    """packed: the dialogues of a chunk in one row, without padding. padded: one dialogue per row, padded to
    the longest; slower, with the same result."""
    attention: Kernel = "auto"
    """Kernel of packed rows. flash_varlen: CUDA in half precision. flex: CUDA. sdpa: any device. auto: the
    first of these that runs on the device."""
    attention_direction: AttentionDirection = "causal"
    """causal: a token sees earlier ones. bidirectional: a token sees all of its dialogue, which must have one
    turn. bidirectional_isolated: a turn sees all of the prefix and of itself; the prefix sees only itself."""

    @model_validator(mode="after")
    def _kernel_of_packed_rows(self) -> RowSettings:
        if self.rows == "padded" and self.attention not in ("auto", "sdpa"):
            raise ValueError(f"attention: {self.attention} is a kernel of packed rows; take rows: packed")
        return self


def contexts_of(attention_direction: AttentionDirection) -> frozenset[Feature]:
    """Return how turns may share a dialogue; empty if it must have a single turn."""
    contexts: dict[AttentionDirection, frozenset[Feature]] = {
        "causal": frozenset({"causal_context", "isolated_turns"}),
        "bidirectional": frozenset(),
        "bidirectional_isolated": frozenset({"isolated_turns"}),
    }
    return contexts[attention_direction]


def isolates_turns(attention_direction: AttentionDirection, dialogue: Dialogue) -> bool:
    """Return whether each turn of the dialogue is a segment of its own after the prefix.

    Raises:
        ValueError: a turn would see later turns, which contain its answer.
    """
    several = len(dialogue.turns) > 1
    context = "isolated_turns" if dialogue.context == "isolated" else "causal_context"
    if several and context not in contexts_of(attention_direction):
        raise ValueError(
            f"`attention_direction: {attention_direction}` cannot encode {dialogue.context} turns of one "
            "dialogue"
        )
    # For a single turn both give the same result, and plain causal attention is faster.
    return attention_direction == "bidirectional_isolated" or (several and dialogue.context == "isolated")


def choose_kernel(setting: Kernel, device: torch.device, *, half: bool) -> Kernel:
    """Return the kernel to run.

    Args:
        setting: that of the recipe.
        device: the backbone's.
        half: whether attention is computed in 16-bit precision.

    Raises:
        MucoError: the kernel that the setting names cannot run here.
    """
    reasons = {"flash_varlen": _flash_lacks(device, half), "flex": _flex_lacks(device), "sdpa": ""}
    if setting == "auto":
        return next(name for name, reason in reasons.items() if not reason)  # type: ignore[return-value]
    if reasons[setting]:
        raise MucoError(f"backbone.attention: {setting} {reasons[setting]}; `auto` takes one that can run")
    return setting


def _flash_lacks(device: torch.device, half: bool) -> str:
    if device.type != "cuda":
        return "needs a CUDA device"
    if not half:
        return "computes in bfloat16; set train.precision: bfloat16"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or above"
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return f"needs torch.nn.attention.varlen, which torch {torch.__version__} lacks"
    return "" if hasattr(varlen, "varlen_attn") else "needs torch.nn.attention.varlen.varlen_attn"


def _flex_lacks(device: torch.device) -> str:
    return "" if device.type == "cuda" else "trains on CUDA devices only"
