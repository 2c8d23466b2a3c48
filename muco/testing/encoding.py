"""The contract check of backbones; it raises AssertionError."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muco.core.backbone import Backbone
from muco.core.dialogue import Dialogue, Message, Turn, TurnKey
from muco.core.image import EncodedImage
from muco.core.registry import Registry
from muco.core.sample import Content
from muco.testing.contracts import config_of


def check_backbone(
    registry: Registry,
    name: str,
    settings: Mapping[str, Any],
    *,
    texts: Iterable[str],
    images: Sequence[EncodedImage],
    folder: Path,
    tolerance: float = 1e-5,
) -> None:
    """Check that batching, packing, given image features, saving and loading do not change an embedding.

    Args:
        registry: has the backbone.
        name: the backbone's.
        settings: those of a small model.
        texts: for a tokenizer that is trained.
        images: at least two.
        folder: empty; the backbone is saved there.
        tolerance: largest allowed difference, in float32.
    """
    cls, config = config_of(registry, "backbone", name, settings)
    torch.manual_seed(0)
    backbone: Backbone = cls.build(config, texts=list(texts)).eval()
    assert cls.hidden_dim_of(config) in (None, backbone.hidden_dim)
    dialogues = [
        dialogue_of(["what is it?"], images[:1]),
        dialogue_of(["a"], ()),
        dialogue_of(["a longer text about nothing much at all"], images[:2]),
    ]
    apart = torch.cat([states(backbone, [dialogue]) for dialogue in dialogues])
    _close(states(backbone, dialogues), apart, tolerance, "a batch differs from dialogues encoded one by one")
    offered = cls.offers(config)
    if "isolated_turns" in offered:
        asked = ["what is it?", "a", "where is the red circle?"]
        together = states(backbone, [dialogue_of(asked, images[:1], context="isolated")])
        alone = torch.cat([states(backbone, [dialogue_of([text], images[:1])]) for text in asked])
        _close(together, alone, tolerance, "isolated turns differ from single-turn passes")
    if "causal_context" in offered:
        first = states(backbone, [dialogue_of(["what is it?", "a"], images[:1])])[:1]
        _close(first, apart[:1], tolerance, "a first turn sees a later one")
    _check_processor(backbone, dialogues, tolerance)
    backbone.save(folder)
    again = cls.load(config, folder).eval()
    _close(states(again, dialogues), states(backbone, dialogues), 0.0, "saving changes an embedding")


def dialogue_of(texts: Sequence[str], images: Sequence[EncodedImage], context: Any = "causal") -> Dialogue:
    """Return a dialogue with one user message per turn."""
    turns = tuple(
        Turn(
            (Message("user", Content(text)),),
            TurnKey(sample_id=1, turn_id=turn, group_id=2, content_id=3 + turn, task_id=0),
        )
        for turn, text in enumerate(texts)
    )
    return Dialogue("", tuple(images), turns, context)


@torch.no_grad()
def states(backbone: Backbone, dialogues: Sequence[Dialogue]) -> Tensor:
    """Return the hidden state of each turn's embedding token, [N, H]."""
    encoded = backbone.encode(backbone.processor.prepare(dialogues))
    return encoded.hidden[encoded.spans.token]


def _check_processor(backbone: Backbone, dialogues: Sequence[Dialogue], tolerance: float) -> None:
    processor = pickle.loads(pickle.dumps(backbone.processor))
    rendered = [processor.render(dialogue) for dialogue in dialogues]
    costs = [each.cost for each in rendered]
    for each in rendered:
        alone = processor.collate([each])
        assert each.cost.tokens == alone.num_tokens, "render and collate disagree on tokens"
        assert each.cost.patches == alone.num_patches, "render and collate disagree on patches"
    inputs = processor.collate(rendered)
    # Fewer are allowed: a backbone may encode what dialogues share once.
    assert inputs.num_tokens <= sum(cost.tokens for cost in costs), (
        "a chunk has more tokens than its dialogues"
    )
    assert inputs.num_patches <= sum(cost.patches for cost in costs), (
        "a chunk has more patches than its dialogues"
    )
    keys = [turn.key.turn_id for dialogue in dialogues for turn in dialogue.turns]
    assert inputs.ids.turn_ids.tolist() == keys, "collate changed the order of turns"
    spans = inputs.spans
    assert ((spans.start <= spans.token) & (spans.token < spans.stop)).all()
    with torch.no_grad():
        whole = backbone.encode(inputs).hidden
        given = backbone.encode(inputs, backbone.encode_images(inputs)).hidden
    assert whole.shape[1] == backbone.hidden_dim
    _close(given, whole, tolerance, "given image features change the hidden states")


def _close(actual: Tensor, expected: Tensor, tolerance: float, message: str) -> None:
    difference = float((actual - expected).abs().max())
    assert difference <= tolerance, f"{message}: by {difference:.2e}"
