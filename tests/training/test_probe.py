from __future__ import annotations

from random import Random

import pytest
import torch

from muco.core import Content, Pair, Sample, TurnEmbeddings
from muco.training.probe import OnePicture, precision_at_1
from tests.helpers.backbones import REGISTRY
from tests.helpers.small import picture


def turns(vectors: list[list[float]], *, contents: list[int]) -> TurnEmbeddings:
    """Return one turn of one image for each vector; `contents` are those of the answers."""
    ids = torch.arange(len(vectors))
    zeros = torch.zeros(len(vectors), dtype=torch.int64)
    return TurnEmbeddings(
        vectors=torch.tensor(vectors), sample_ids=ids, turn_ids=zeros, form_ids=zeros, group_ids=ids.clone(),
        content_ids=torch.tensor(contents), task_ids=zeros, is_negative=zeros.bool(),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["multiturn_infonce", "infonce", "siglip", "hardness_weighted"])
def test_targets_that_tie_share_the_credit(name: str):
    cls = REGISTRY.component("loss", name)
    query = turns([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], contents=[1, 2, 3])
    target = turns([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], contents=[1, 2, 3])
    credit, chance = precision_at_1(cls(cls.Config()), query, target)
    assert credit.tolist() == pytest.approx([1 / 3] * 3)
    assert chance.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(("duplicates", "credit"), [("keep", 1 / 2), ("mask", 1.0), ("merge", 1.0)])
def test_equal_answers_compete_only_as_they_do_in_the_loss(duplicates: str, credit: float):
    cls = REGISTRY.component("loss", "multiturn_infonce")
    loss = cls(cls.Config(duplicates=duplicates))
    query = turns([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], contents=[1, 1, 2])
    target = turns([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], contents=[1, 1, 2])
    assert precision_at_1(loss, query, target)[0].tolist() == pytest.approx([credit, credit, 1.0])


def test_turns_of_the_same_image_compete_only_without_the_mask():
    query = turns([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], contents=[1, 2, 3])
    target = turns([[0.6, 0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], contents=[1, 2, 3])
    for side in (query, target):
        side.group_ids[1] = side.group_ids[0]
    cls = REGISTRY.component("loss", "multiturn_infonce")
    masked, plain = (
        precision_at_1(cls(cls.Config(mask=mask)), query, target)[0] for mask in ("same_group", "none")
    )
    assert masked.tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert plain.tolist() == pytest.approx([0.0, 0.0, 1.0])


@pytest.mark.parametrize("name", ["single_turn", "multi_turn", "reconstruction"])
def test_a_packer_shows_one_picture_and_keeps_the_identities(name: str):
    cls = REGISTRY.component("packer", name)
    packer = cls(cls.Config())
    blind = OnePicture(packer)
    shown = set()
    for index, colour in enumerate(("red", "blue")):
        image = picture(colour, (60, 60 + index))
        pairs = (Pair("a", (Content("what is it?", (image,)),), Content("a disc", (image,))),)
        sample = Sample(f"{index}", "drawn", (image,), pairs)
        own, one = (
            each.pack(sample, batch_random=Random(0), sample_random=Random(0)) for each in (packer, blind)
        )
        for mine, its in zip(own.queries + own.targets, one.queries + one.targets, strict=True):
            assert [turn.key for turn in mine.turns] == [turn.key for turn in its.turns]
            contents = [message.content for turn in its.turns for message in turn.messages]
            images = [*its.images, *(image for content in contents for image in content.images)]
            shown |= {image.content_id for image in images}
    assert shown == {picture("red", (60, 60)).content_id}
