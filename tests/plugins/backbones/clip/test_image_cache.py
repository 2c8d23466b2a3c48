"""The features of a frozen image tower, computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from muco.core.turns import EncoderInputs
from muco.plugins.backbones.clip import Clip
from muco.testing import dialogue_of
from tests.helpers.small import SMALL_CLIP, TEXTS, picture

IMAGES = [picture("red", (56, 56)), picture("blue", (80, 40)), picture("green", (40, 80))]
FROZEN = {"image_tower": {"name": "test_resnet"}, "freeze_vision": True}


def build(**changes: Any) -> Clip:
    torch.manual_seed(0)
    return Clip.build(Clip.Config.model_validate({**SMALL_CLIP, **changes}), texts=TEXTS).train()


def chunk(backbone: Clip, *indices: int) -> EncoderInputs:
    return backbone.processor.prepare([dialogue_of(["a"], [IMAGES[index]]) for index in indices])


def embeddings(backbone: Clip, *indices: int) -> Tensor:
    return backbone.encode(chunk(backbone, *indices)).hidden


def features(backbone: Clip, *indices: int) -> Tensor:
    images = backbone.encode_images(chunk(backbone, *indices))
    assert images is not None
    return images.tensors[0]


def encoded(backbone: Clip) -> list[int]:
    """Return a list to which each pass of the image tower will add its number of images."""
    sizes: list[int] = []
    backbone.model.visual.trunk.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    return sizes


def test_each_image_is_encoded_once_and_gives_the_same_embeddings():
    plain, cached = build(**FROZEN), build(**FROZEN, image_cache=8)
    sizes = encoded(cached)
    for indices in ((0, 1), (1, 0), (2, 1)):
        torch.testing.assert_close(
            embeddings(cached, *indices), embeddings(plain, *indices), rtol=0, atol=1e-6
        )
    assert sizes == [1, 1, 1]


def test_features_do_not_depend_on_the_images_beside_bit_for_bit():
    first, second = build(**FROZEN, image_cache=8), build(**FROZEN, image_cache=8)
    apart = torch.cat([features(first, index) for index in (0, 1, 2)])
    assert torch.equal(features(second, 2, 1, 0), apart.flip(0))


def test_images_beyond_the_limit_are_encoded_at_each_use():
    backbone = build(**FROZEN, image_cache=1)
    sizes = encoded(backbone)
    embeddings(backbone, 0, 1)
    embeddings(backbone, 0, 1)
    assert sizes == [1, 1, 1]


def test_features_of_an_evaluation_serve_in_training():
    backbone = build(**FROZEN, image_cache=8)
    sizes = encoded(backbone)
    with torch.inference_mode():
        embeddings(backbone, 0)
    embeddings(backbone, 0).sum().backward()
    assert sizes == [1]
    gradient = backbone.model.visual.head.proj.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_features_in_another_precision_are_others():
    backbone = build(**FROZEN, image_cache=8)
    exact = embeddings(backbone, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = embeddings(backbone, 0)
    assert not torch.equal(rounded, exact)
    assert torch.equal(embeddings(backbone, 0), exact)


@pytest.mark.parametrize("changes", [{}, {"adapter": {"vision": True}}], ids=["trained", "adapters"])
def test_a_tower_that_is_trained_is_refused(changes):
    with pytest.raises(ValueError, match="`image_cache` keeps the features of a frozen image tower"):
        build(image_cache=8, **changes)
