"""Which kernel computes attention, and whether rows are packed."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError

Kernel = Literal["auto", "flash_varlen", "flex", "sdpa"]


class RowSettings(ComponentConfig):
    """How dialogues become rows; part of the settings of every decoder backbone."""

    rows: Literal["packed", "padded"] = "packed"
    """packed: a chunk's dialogues lie in one row, without padding. padded: one a row, filled up to the
    longest; slower, with the same result."""
    attention: Kernel = "auto"
    """Kernel of packed rows. flash_varlen: CUDA in half precision. flex: CUDA. sdpa: any device. auto: the
    first of them that the device can."""

    @model_validator(mode="after")
    def _kernel_of_packed_rows(self) -> RowSettings:
        if self.rows == "padded" and self.attention not in ("auto", "sdpa"):
            raise ValueError(f"attention: {self.attention} is a kernel of packed rows; take rows: packed")
        return self


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
