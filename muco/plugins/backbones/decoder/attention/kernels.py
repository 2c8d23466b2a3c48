"""Which kernel computes attention, and whether rows are packed."""

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
    """How dialogues become rows; part of the settings of every decoder backbone."""

    rows: Literal["packed", "padded"] = "packed"
    """packed: a chunk's dialogues lie in one row, without padding. padded: one a row, filled up to the
    longest; slower, with the same result."""
    attention: Kernel = "auto"
    """Kernel of packed rows. flash_varlen: CUDA in half precision. flex: CUDA. sdpa: any device. auto: the
    first of them that the device can."""
    attention_direction: AttentionDirection = "causal"
    """causal: a token sees what comes before it. bidirectional: all of its dialogue, which has one turn; as
    the public MuCo code can. bidirectional_isolated: a turn sees all of the shared prefix and of itself, the
    prefix all of itself alone, so that it is the same for every turn."""

    @model_validator(mode="after")
    def _kernel_of_packed_rows(self) -> RowSettings:
        if self.rows == "padded" and self.attention not in ("auto", "sdpa"):
            raise ValueError(f"attention: {self.attention} is a kernel of packed rows; take rows: packed")
        return self


def contexts_of(attention_direction: AttentionDirection) -> frozenset[Feature]:
    """Return the ways in which turns may share a dialogue; none where it has one turn only."""
    contexts: dict[AttentionDirection, frozenset[Feature]] = {
        "causal": frozenset({"causal_context", "isolated_turns"}),
        "bidirectional": frozenset(),
        "bidirectional_isolated": frozenset({"isolated_turns"}),
    }
    return contexts[attention_direction]


def isolates_turns(attention_direction: AttentionDirection, dialogue: Dialogue) -> bool:
    """Say whether each turn of the dialogue is a segment of its own after the prefix.

    Raises:
        ValueError: a turn would see the later ones, which answer it.
    """
    several = len(dialogue.turns) > 1
    context = "isolated_turns" if dialogue.context == "isolated" else "causal_context"
    if several and context not in contexts_of(attention_direction):
        raise ValueError(
            f"`attention_direction: {attention_direction}` cannot encode {dialogue.context} turns of one "
            "dialogue"
        )
    # A single turn is the same either way, and causal attention is the faster of the two.
    return attention_direction == "bidirectional_isolated" or (several and dialogue.context == "isolated")


def choose_kernel(wanted: Kernel, device: torch.device, *, half: bool) -> Kernel:
    """Return the kernel that will run.

    Args:
        wanted: as the recipe has it.
        device: where the backbone is.
        half: whether attention is computed in 16 bits.

    Raises:
        MucoError: a kernel that is named and cannot run here.
    """
    lacking = {"flash_varlen": _flash_lacks(device, half), "flex": _flex_lacks(device), "sdpa": ""}
    if wanted == "auto":
        return next(name for name, lack in lacking.items() if not lack)  # type: ignore[return-value]
    if lacking[wanted]:
        raise MucoError(f"backbone.attention: {wanted} {lacking[wanted]}; `auto` takes what there is")
    return wanted


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
