"""Contract checks: the first test of a component, in muco and in plugins. They raise AssertionError."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muco.core.backbone import Backbone
from muco.core.component import KINDS, Component, ComponentConfig, Kind
from muco.core.dialogue import Dialogue, DialoguePair, Message, Turn, TurnKey
from muco.core.image import EncodedImage
from muco.core.loss import Loss
from muco.core.packer import Packer
from muco.core.pooler import Pooler
from muco.core.registry import Registry
from muco.core.sample import Content, Sample
from muco.core.sampler import Sampler
from muco.core.source import Source
from muco.core.suite import Suite
from muco.core.turns import TurnEmbeddings, TurnIds, TurnSpans, TurnStates

__all__ = [f"check_{kind}" for kind in sorted(KINDS)]  # pyright: ignore[reportUnsupportedDunderAll]


def config_of(registry: Registry, kind: Kind, name: str, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the class and its validated settings; check what holds for every kind."""
    cls = registry.component(kind, name)
    assert issubclass(cls, Component)
    config = cls.Config.model_validate(dict(settings))
    assert isinstance(config, ComponentConfig)
    assert cls.Config.model_validate(config.model_dump(mode="json")) == config, (
        "the settings change on a round trip"
    )
    for field, info in cls.Config.model_fields.items():
        assert info.description, f"{name}.{field} has no docstring"
    return cls, config


def check_source(registry: Registry, name: str, settings: Mapping[str, Any]) -> None:
    """Check that equal settings give equal samples, from any start, and that `len` is their number."""
    cls, config = config_of(registry, "source", name, settings)
    source: Source = cls(config)
    samples = list(source.samples())
    assert len(samples) == len(source)
    assert list(cls(config).samples()) == samples
    middle = len(samples) // 2
    assert list(islice(source.samples(middle), 3)) == samples[middle : middle + 3]
    assert len({sample.sample_id for sample in samples}) == len(samples), "sample ids are not unique"


def check_sampler(
    registry: Registry, name: str, settings: Mapping[str, Any], *, catalog: Mapping[str, int]
) -> None:
    """Check that plans depend on their arguments only, and that all batches but the last are full."""
    cls, config = config_of(registry, "sampler", name, settings)
    sampler: Sampler = cls(config)
    number = sampler.num_batches(catalog, batch_size=4)
    assert number > 0
    for position in range(number):
        where = {"batch_size": 4, "seed": 1, "epoch": 2, "position": position}
        plan = sampler.plan(catalog, **where)
        assert plan == cls(config).plan(catalog, **where), "a plan depends on more than its arguments"
        assert (plan.epoch, plan.position) == (2, position)
        assert len(plan.samples) == 4 or position == number - 1
        assert 0 < len(plan.samples) <= 4
        assert all(0 <= ref.index < catalog[ref.dataset] for ref in plan.samples)


def check_packer(
    registry: Registry, name: str, settings: Mapping[str, Any], *, samples: Sequence[Sample]
) -> None:
    """Check that query turns have target turns with their keys, and that packing is reproducible."""
    cls, config = config_of(registry, "packer", name, settings)
    packer: Packer = pickle.loads(pickle.dumps(cls(config)))
    for sample in samples:

        def packed(seed: int, sample: Sample = sample) -> DialoguePair:
            return packer.pack(
                sample, batch_random=random.Random(seed), sample_random=random.Random(seed + 1)
            )

        pair = packed(0)
        assert pair == packed(0), "packing depends on more than the sample and the generators"
        queries = [turn.key for dialogue in pair.queries for turn in dialogue.turns]
        targets = [turn.key for dialogue in pair.targets for turn in dialogue.turns]
        assert queries
        assert not any(key.is_negative for key in queries + targets)
        answered = {(key.sample_id, key.turn_id) for key in targets}
        assert {(key.sample_id, key.turn_id) for key in queries} == answered
        assert {key.group_id for key in queries + targets} == {sample.group_id}
        for dialogue in pair.negatives:
            assert all(turn.key.is_negative for turn in dialogue.turns)
    assert len(packer.inference(Content("a red circle")).turns) == 1


def check_pooler(registry: Registry, name: str, settings: Mapping[str, Any]) -> None:
    """Check that vectors have unit length, depend only on their turn's span, and have a gradient."""
    cls, config = config_of(registry, "pooler", name, settings)
    torch.manual_seed(0)
    pooler: Pooler = cls(config, hidden_dim=6)
    hidden = torch.randn(10, 6, requires_grad=True)
    # Tokens 0 to 3 are a shared prefix; turns are 4 to 6 and 7 to 9, their embedding tokens 5 and 8.
    spans = TurnSpans(token=torch.tensor([5, 8]), start=torch.tensor([4, 7]), stop=torch.tensor([7, 10]))
    turns: TurnEmbeddings = pooler(TurnStates(hidden=hidden, spans=spans, ids=TurnIds.of([_key(0), _key(1)])))
    assert turns.vectors.shape == (2, pooler.embedding_dim)
    assert cls.embedding_dim_of(config, 6) in (None, pooler.embedding_dim)
    torch.testing.assert_close(turns.vectors.norm(dim=1), torch.ones(2))
    read = pooler.reads(spans)
    if read is not None:
        assert len(read.unique()) == len(read), "`reads` names a token twice"
        others = torch.full_like(hidden, torch.nan).index_copy(0, read, hidden[read])
        again = pooler(TurnStates(hidden=others, spans=spans, ids=turns.ids()))
        assert torch.equal(again.vectors, turns.vectors), (
            "the embedding depends on tokens that `reads` does not name"
        )
    (gradient,) = torch.autograd.grad(turns.vectors[0].sum(), hidden)
    assert not gradient[:4].any(), "the shared prefix is in the embedding"
    assert not gradient[7:].any(), "another turn is in the embedding"
    assert gradient[4:7].any()


def check_loss(registry: Registry, name: str, settings: Mapping[str, Any]) -> None:
    """Check for one finite number per query turn, in any order of targets, with gradient on both sides."""
    cls, config = config_of(registry, "loss", name, settings)
    loss: Loss = cls(config)
    keys = [_key(sample, turn) for sample in range(4) for turn in range(sample % 2 + 1)]
    torch.manual_seed(0)
    sides = torch.nn.functional.normalize(torch.randn(2, len(keys), 8, dtype=torch.float64), dim=-1)
    sides.requires_grad_()
    query, target = (TurnEmbeddings.join(side, TurnIds.of(keys)) for side in sides)
    terms = loss(query, target)
    assert terms.per_turn.shape == (len(keys),)
    assert torch.isfinite(terms.per_turn).all()
    assert all(count.ndim == 0 for count in (*terms.counts.values(), *terms.rates.values()))
    shuffled = target.select(torch.randperm(len(keys)))
    torch.testing.assert_close(loss(query, shuffled).per_turn, terms.per_turn)
    (gradient,) = torch.autograd.grad(terms.per_turn.sum(), sides)
    assert gradient.flatten(1).any(1).all(), "a side gets no gradient"
    restored = cls(config)
    restored.load_state_dict(loss.state_dict())
    torch.testing.assert_close(restored(query, target).per_turn, terms.per_turn, rtol=0, atol=0)


def check_suite(registry: Registry, name: str, settings: Mapping[str, Any]) -> None:
    """Check that equal settings give equal tasks, and that each pool holds a candidate once."""
    cls, config = config_of(registry, "suite", name, settings)
    suite: Suite = cls(config)
    tasks = list(suite.tasks())
    assert tasks
    assert len({task.name for task in tasks}) == len(tasks)
    for task, again in zip(tasks, cls(config).tasks(), strict=True):
        ids = [content.content_id for content in task.pool]
        assert len(set(ids)) == len(ids), f"{task.name}: a candidate is in the pool twice"
        assert ids == [content.content_id for content in again.pool]
        assert list(task.queries) == list(again.queries)
        assert task.candidates == again.candidates
        assert task.relevant == again.relevant


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
        name: names it.
        settings: of a small model.
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
        queries = ["what is it?", "a", "where is the red circle?"]
        together = states(backbone, [dialogue_of(queries, images[:1], context="isolated")])
        single = torch.cat([states(backbone, [dialogue_of([text], images[:1])]) for text in queries])
        _close(together, single, tolerance, "isolated turns differ from single-turn passes")
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
    for each in rendered:
        chunk = processor.collate([each])
        assert each.cost.tokens == chunk.num_tokens, "render and collate disagree on tokens"
        assert each.cost.patches == chunk.num_patches, "render and collate disagree on patches"
    inputs = processor.collate(rendered)
    # Fewer are allowed: a backbone may encode what dialogues share once.
    costs = [each.cost for each in rendered]
    num_tokens = sum(cost.tokens for cost in costs)
    assert inputs.num_tokens <= num_tokens, "a chunk has more tokens than its dialogues"
    images = {image: patches for cost in costs for image, patches in cost.images.items()}
    others = sum(cost.patches - sum(cost.images.values()) for cost in costs)
    num_patches = sum(images.values()) + others
    assert inputs.num_patches <= num_patches, "a chunk has more patches than `Cost.images` says"
    keys = [turn.key.turn_id for dialogue in dialogues for turn in dialogue.turns]
    assert inputs.ids.turn_ids.tolist() == keys, "collate changed the order of turns"
    spans = inputs.spans
    assert ((spans.start <= spans.token) & (spans.token < spans.stop)).all()
    with torch.no_grad():
        whole = backbone.encode(inputs).hidden
        given = backbone.encode(inputs, backbone.encode_images(inputs)).hidden
        read = spans.token
        partly = backbone.encode(replace(inputs, read_tokens=read)).hidden
    assert whole.shape[1] == backbone.hidden_dim
    assert partly.isfinite().all()
    _close(partly[read], whole[read], tolerance, "`read_tokens` changes the states of these tokens")
    _close(given, whole, tolerance, "given image features change the hidden states")


def _close(actual: Tensor, expected: Tensor, tolerance: float, message: str) -> None:
    difference = float((actual - expected).abs().max())
    assert difference <= tolerance, f"{message}: by {difference:.2e}"


def _key(sample: int, turn: int = 0) -> TurnKey:
    return TurnKey(
        sample_id=sample, turn_id=turn, group_id=sample, content_id=10 * sample + turn, task_id=turn
    )
