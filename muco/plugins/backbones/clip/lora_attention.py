"""Attention whose projections can have adapters, and which linear layers of a tower can have them.

N rows, L tokens, h heads, D size of a tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from muco.plugins.backbones.lora import linear_layers


class OpenAttention(nn.Module):
    """Self-attention with the weights of an `nn.MultiheadAttention`, whose projections are called as modules.

    `nn.MultiheadAttention` reads the weights of its projections without calling them, so adapters on them
    would have no effect.
    """

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = original.num_heads
        self.in_proj = nn.Linear(original.embed_dim, 3 * original.embed_dim, device="meta")
        self.in_proj.weight, self.in_proj.bias = original.in_proj_weight, original.in_proj_bias
        self.out_proj = original.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """Return [N, L, D]; `attn_mask` is added to the logits, [L, L] or [N x h, L, L]."""
        assert key is query and value is query and not need_weights  # noqa: PT018
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
        """Return an `nn.MultiheadAttention` with the current weights."""
        dim = self.in_proj.in_features
        original: Any = nn.MultiheadAttention(dim, self.num_heads, batch_first=True, device="meta")
        original.in_proj_weight, original.in_proj_bias = self.in_proj.weight, self.in_proj.bias
        original.out_proj = self.out_proj
        return original.train(self.training)


def open_attention(tower: nn.Module) -> None:
    """Replace the attention in open_clip's blocks by `OpenAttention`."""
    for block in _blocks(tower):
        if isinstance(block.attn, nn.MultiheadAttention) and block.attn.batch_first:
            block.attn = OpenAttention(block.attn)


def close_attention(model: nn.Module) -> None:
    """Undo `open_attention`."""
    for block in _blocks(model):
        if isinstance(block.attn, OpenAttention):
            block.attn = block.attn.closed()


def closed_names(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model, named as after `close_attention`."""
    parts = ("weight", "bias")
    replaced = [name for name, each in model.named_modules() if isinstance(each, OpenAttention)]
    names = {f"{name}.in_proj.{part}": f"{name}.in_proj_{part}" for name in replaced for part in parts}
    return {names.get(name, name): weight for name, weight in weights.items()}


@torch.no_grad()
def called_layers(tower: nn.Module, example: Tensor) -> list[str]:
    """Return the names of the linear layers that the tower calls; on others an adapter has no effect."""
    called: set[str] = set()
    names = linear_layers(tower)
    hooks = [
        tower.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
        for name in names
    ]
    training = tower.training
    tower.eval()(example)
    tower.train(training)
    for hook in hooks:
        hook.remove()
    return [name for name in names if name in called]


def uncalled_layers(tower: nn.Module, called: list[str]) -> list[str]:
    """Return the names of the linear layers, fused ones included, that cannot have adapters."""
    fused = [name for name, _ in tower.named_parameters() if name.endswith("in_proj_weight")]
    return [*fused, *(name for name in linear_layers(tower) if name not in called)]


def _blocks(tower: nn.Module) -> Iterator[Any]:
    from open_clip.transformer import ResidualAttentionBlock

    return (each for each in tower.modules() if isinstance(each, ResidualAttentionBlock))
