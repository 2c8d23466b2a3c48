"""The smallest backbone of every family."""

from __future__ import annotations

from muco.core import default_registry
from tests.helpers import small

REGISTRY = default_registry()
BACKBONES = {
    **{family: ("qwen_vl", small.small(family)) for family in small.FAMILIES},
    **{family: ("llava", small.small_llava(family)) for family in small.LLAVA_FAMILIES},
    "idefics": ("idefics", small.small_idefics(split_images=True)),
    "clip": ("clip", {**small.SMALL_CLIP, "truncate": True}),
}
