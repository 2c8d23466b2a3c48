"""What adapters need of the towers: attention whose maps are modules, and which maps a tower calls.

N rows, L tokens, h heads, D size of a tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from muco.plugins.backbones.lora import linear_maps


class OpenAttention(nn.Module):
    """The self-attention of an `nn.MultiheadAttention`, whose weights it takes.

    That one reads the weights of its maps and calls none of them, so that nothing put on them has an effect.
    """

    def __init__(self, closed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = closed.num_heads
        self.in_proj = nn.Linear(closed.embed_dim, 3 * closed.embed_dim, device="meta")
        self.in_proj.weight, self.in_proj.bias = closed.in_proj_weight, closed.in_proj_bias
        self.out_proj = closed.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """Return [N, L, D]; `attn_mask` is added to the logits, [L, L] or [N x h, L, L]."""
        assert key is query
        assert value is query
        assert not need_weights
        parts = self.in_proj(query).unflatten(2, (3, self.num_heads, -1))
        query_NhLd, key_NhLd, value_NhLd = parts.permute(2, 0, 3, 1, 4)
        if attn_mask is not None:
            mask = attn_mask.to(query_NhLd.dtype)
            attn_mask = mask.unflatten(0, (-1, self.num_heads)) if mask.ndim == 3 else mask
        mixed_NhLd = nn.functional.scaled_dot_product_attention(
            query_NhLd, key_NhLd, value_NhLd, attn_mask=attn_mask
        )
        return self.out_proj(mixed_NhLd.transpose(1, 2).flatten(2)), None

    def closed(self) -> nn.MultiheadAttention:
        """Return what this one was made of, with the weights of now."""
        found = nn.MultiheadAttention(
            self.in_proj.in_features, self.num_heads, batch_first=True, device="meta"
        )
        parts: Any = found
        parts.in_proj_weight, parts.in_proj_bias = self.in_proj.weight, self.in_proj.bias
        parts.out_proj = self.out_proj
        return found.train(self.training)


def open_attention(tower: nn.Module) -> None:
    """Let the maps of the attention in open_clip's blocks be called as modules."""
    for block in _blocks(tower):
        if isinstance(block.attn, nn.MultiheadAttention) and block.attn.batch_first:
            block.attn = OpenAttention(block.attn)


def close_attention(model: nn.Module) -> None:
    """Undo `open_attention`."""
    for block in _blocks(model):
        if isinstance(block.attn, OpenAttention):
            block.attn = block.attn.closed()


def closed_names(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model under the names that they have where its attention is closed."""
    parts = ("weight", "bias")
    opened = [name for name, each in model.named_modules() if isinstance(each, OpenAttention)]
    names = {f"{name}.in_proj.{part}": f"{name}.in_proj_{part}" for name in opened for part in parts}
    return {names.get(name, name): weight for name, weight in weights.items()}


@torch.no_grad()
def called_maps(tower: nn.Module, example: Tensor) -> list[str]:
    """Return the names of the linear maps that the tower calls: on another an adapter would do nothing."""
    called: set[str] = set()
    hooks = [
        tower.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
        for name in linear_maps(tower)
    ]
    training = tower.training
    tower.eval()(example)
    tower.train(training)
    for hook in hooks:
        hook.remove()
    return [name for name in linear_maps(tower) if name in called]


def closed_maps(tower: nn.Module, called: list[str]) -> list[str]:
    """Return the names of the maps that adapters do not fit."""
    fused = [name for name, _ in tower.named_parameters() if name.endswith("in_proj_weight")]
    return [*fused, *(name for name in linear_maps(tower) if name not in called)]


def _blocks(tower: nn.Module) -> Iterator[Any]:
    from open_clip.transformer import ResidualAttentionBlock

    return (each for each in tower.modules() if isinstance(each, ResidualAttentionBlock))
