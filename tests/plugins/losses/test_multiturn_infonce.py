from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers, lists, sampled_from
from pydantic import ValidationError

from muco.plugins.losses.infonce import InfoNCE
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.testing import check_loss
from tests.helpers.turns import random_turns

turn_counts_lists = lists(integers(1, 4), min_size=2, max_size=6)


def slow_multiturn_infonce(query, target, temperature, duplicates):
    """The formula of paper.md written as loops; None where a query has no negative."""
    losses = []
    for i in range(len(query)):
        positives, negatives, seen = [], [], set()
        for j in sorted(range(len(target)), key=lambda j: j):
            score = float(query.vectors[i].detach() @ target.vectors[j].detach()) / temperature
            hard = bool(target.is_negative[j])
            own = (
                query.sample_ids[i] == target.sample_ids[j]
                and query.turn_ids[i] == target.turn_ids[j]
                and not hard
            )
            equal = bool(query.content_ids[i] == target.content_ids[j])
            sibling = bool(query.group_ids[i] == target.group_ids[j]) and not hard
            content = int(target.content_ids[j])
            if duplicates == "merge":
                if content in seen:
                    continue
                seen.add(content)
                rows = [k for k in range(len(target)) if int(target.content_ids[k]) == content]
                own = equal or any(
                    query.sample_ids[i] == target.sample_ids[k]
                    and query.turn_ids[i] == target.turn_ids[k]
                    and not target.is_negative[k]
                    for k in rows
                )
                sibling = any(
                    query.group_ids[i] == target.group_ids[k] and not target.is_negative[k] for k in rows
                )
            if own:
                positives.append(score)
            elif not sibling and not (equal and duplicates == "mask"):
                negatives.append(score)
        if not negatives:
            return None
        rest = math.log(sum(math.exp(score) for score in negatives))
        losses.append(sum(math.log1p(math.exp(rest - score)) for score in positives) / len(positives))
    return torch.tensor(losses, dtype=torch.float64)


def stage_1(query, target, temperature):
    """Paper, stage 1: InfoNCE over all turns of the batch, the other turns of the image masked."""
    losses = []
    for i in range(len(query)):
        scores = {
            j: float(query.vectors[i].detach() @ target.vectors[j].detach()) / temperature
            for j in range(len(target))
        }
        (own,) = [
            j
            for j in scores
            if target.sample_ids[j] == query.sample_ids[i] and target.turn_ids[j] == query.turn_ids[i]
        ]
        others = [j for j in scores if target.group_ids[j] != query.group_ids[i]]
        bottom = math.exp(scores[own]) + sum(math.exp(scores[j]) for j in others)
        losses.append(-math.log(math.exp(scores[own]) / bottom))
    return losses


def stage_2(query, target, temperature, *, forms, mask):
    """Paper, stage 2: (q,p), (q,p'), (q',p), (q',p'), each a cross-entropy; the mean of each query's two.

    joint: against both forms of the other pairs' targets. separate: against those of p's form, as the
    public code does. Hard negatives are columns of each. Without the mask the other form of p is one too.
    """
    losses = []
    for i in range(len(query)):
        terms = []
        for j in range(len(target)):
            is_own = bool(target.sample_ids[j] == query.sample_ids[i])
            if not is_own or target.is_negative[j]:
                continue
            bottom = 0.0
            for k in range(len(target)):
                other = bool(target.sample_ids[k] != query.sample_ids[i])
                same_form = bool(target.form_ids[k] == target.form_ids[j])
                hard = bool(target.is_negative[k])
                counts = hard or (other and (forms == "joint" or same_form))
                counts = counts or (not other and mask == "none" and forms == "joint")
                if counts or k == j:
                    bottom += math.exp(
                        float(query.vectors[i].detach() @ target.vectors[k].detach()) / temperature
                    )
            top = math.exp(float(query.vectors[i].detach() @ target.vectors[j].detach()) / temperature)
            terms.append(-math.log(top / bottom))
        assert len(terms) == 2
        losses.append(sum(terms) / 2)
    return losses


@pytest.mark.parametrize(
    "settings", [{}, {"mask": "none", "forms": "separate", "symmetric": True, "false_negative_margin": 0.1}]
)
def test_keeps_the_contract(registry, settings):
    check_loss(registry, "multiturn_infonce", settings)


@pytest.mark.parametrize("seed", range(3))
def test_stage_1_of_the_paper(seed):
    query, target = random_turns([7, 3, 1, 7], seed)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.05))
    found = loss(query, target).per_turn.tolist()
    assert found == pytest.approx(stage_1(query, target, 0.05), abs=1e-6)


@pytest.mark.parametrize("mask", ["same_group", "none"])
@pytest.mark.parametrize("forms", ["joint", "separate"])
@pytest.mark.parametrize("num_negatives", [0, 3])
def test_stage_2_of_the_paper_and_of_the_public_code(forms, mask, num_negatives):
    query, target = random_turns([1] * 6, 0, num_forms=2, num_negatives=num_negatives)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.05, forms=forms, mask=mask))
    found = loss(query, target).per_turn.tolist()
    assert found == pytest.approx(stage_2(query, target, 0.05, forms=forms, mask=mask), abs=1e-6)


def test_separate_forms_are_a_quarter_of_the_public_codes_sum_of_four_cross_entropies():
    query, target = random_turns([1] * 5, 1, num_forms=2)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1, forms="separate"))
    rows = [query.vectors[query.form_ids == form] for form in (0, 1)]
    order = target.sample_ids.argsort()
    columns = [target.vectors[order][target.form_ids[order] == form] for form in (0, 1)]
    own = torch.arange(5)
    entropies = [torch.nn.functional.cross_entropy(q @ p.T / 0.1, own) for q in rows for p in columns]
    torch.testing.assert_close(loss(query, target).per_turn.mean(), sum(entropies) / 4)


def test_without_the_mask_siblings_and_the_other_form_are_negatives():
    query, target = random_turns([2, 3], 0, num_forms=2)
    masked, plain = (
        MultiTurnInfoNCE(MultiTurnInfoNCE.Config(mask=mask))(query, target).counts
        for mask in ("same_group", "none")
    )
    assert int(masked["negatives"]) == 4 * 6 + 6 * 4
    assert int(masked["masked_siblings"]) == 4 * 2 + 6 * 4
    # Each of 10 queries has two positives, and holds each against the other.
    assert int(plain["negatives"]) == 10 * 8 + 10 * 2
    assert int(plain["masked_siblings"]) == 0


@given(turn_counts=turn_counts_lists, seed=integers(0, 2**16), num_forms=integers(1, 2))
def test_without_the_mask_it_is_infonce(turn_counts, seed, num_forms):
    query, target = random_turns(turn_counts, seed, num_forms=num_forms)
    multi = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(mask="none"))(query, target)
    torch.testing.assert_close(multi.per_turn, InfoNCE(InfoNCE.Config())(query, target).per_turn)


@given(seed=integers(0, 2**16), margin=sampled_from([0.0, 0.1, 0.5]), num_negatives=integers(0, 3))
def test_what_is_more_similar_than_the_positive_by_the_margin_is_no_negative(seed, margin, num_negatives):
    query, target = random_turns([1, 2, 1, 1], seed, num_negatives=num_negatives)
    similarity = query.vectors.detach() @ target.vectors.detach().T
    own = (query.sample_ids[:, None] == target.sample_ids) & (query.turn_ids[:, None] == target.turn_ids)
    own &= ~target.is_negative
    group = (query.group_ids[:, None] == target.group_ids) & ~target.is_negative
    best = similarity.masked_fill(~own, -2).amax(1)
    beyond = ~group & (similarity > best[:, None] + margin)
    logits = (similarity / 0.1).masked_fill(beyond | (group & ~own), float("-inf"))
    expected = logits.logsumexp(1) - best / 0.1
    config = MultiTurnInfoNCE.Config(temperature=0.1, duplicates="keep", false_negative_margin=margin)
    found = MultiTurnInfoNCE(config)(query, target)
    torch.testing.assert_close(found.per_turn, expected)
    assert int(found.counts["masked_margin"]) == int(beyond.sum())
    assert int(found.counts["negatives"]) == int((~group & ~beyond).sum())
    plain = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1, duplicates="keep"))(query, target)
    assert found.rates == plain.rates, "in-batch accuracy is over all negatives"


@pytest.mark.parametrize("mask", ["same_group", "none"])
def test_a_query_whose_negatives_are_all_beyond_the_margin_teaches_nothing(mask):
    query, target = random_turns([1, 1], 0)
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    query, target = (
        replace(side.select(side.sample_ids.argsort()), vectors=vectors[order])
        for side, order in ((query, [0, 1]), (target, [1, 0]))
    )
    config = MultiTurnInfoNCE.Config(false_negative_margin=0.1, mask=mask)
    terms = MultiTurnInfoNCE(config)(query, target)
    assert terms.per_turn.tolist() == [0, 0]
    assert int(terms.counts["masked_margin"]) == 2
    (gradient,) = torch.autograd.grad(terms.per_turn.sum(), vectors)
    assert not gradient.any()


def test_the_queries_of_a_merged_target_cannot_be_merged():
    with pytest.raises(ValidationError, match="`symmetric` needs `duplicates: mask` or `keep`"):
        MultiTurnInfoNCE.Config(symmetric=True, duplicates="merge")


@given(
    turn_counts=turn_counts_lists,
    seed=integers(0, 2**16),
    duplicates=sampled_from(["keep", "mask", "merge"]),
    num_contents=sampled_from([3, 1000]),
    num_negatives=integers(0, 4),
)
def test_matches_the_formula_written_as_loops(turn_counts, seed, duplicates, num_contents, num_negatives):
    query, target = random_turns(turn_counts, seed, num_contents=num_contents, num_negatives=num_negatives)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1, duplicates=duplicates))
    expected = slow_multiturn_infonce(query, target, 0.1, duplicates)
    if expected is None:
        with pytest.raises(ValueError, match="no negative"):
            loss(query, target)
    else:
        torch.testing.assert_close(loss(query, target).per_turn, expected, rtol=1e-9, atol=1e-9)


@given(num_samples=integers(2, 7), seed=integers(0, 2**16))
def test_one_turn_a_sample_equals_infonce(num_samples, seed):
    query, target = random_turns([1] * num_samples, seed)
    multi = MultiTurnInfoNCE(MultiTurnInfoNCE.Config())(query, target)
    single = InfoNCE(InfoNCE.Config())(query, target)
    torch.testing.assert_close(multi.per_turn, single.per_turn, rtol=0, atol=0)


@given(seed=integers(0, 2**16))
def test_siblings_get_no_gradient(seed):
    query, target = random_turns([2, 2], seed)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=1.0, duplicates="keep"))
    own = (query.sample_ids == 0) & (query.turn_ids == 0)
    (gradient,) = torch.autograd.grad(loss(query, target).per_turn[own].sum(), target.vectors)
    sibling = (target.sample_ids == 0) & (target.turn_ids == 1)
    assert not gradient[sibling].any()
    assert gradient[~sibling].any(1).all()


def test_counts_say_what_was_masked():
    query, target = random_turns([2, 3], 0)
    counts = MultiTurnInfoNCE(MultiTurnInfoNCE.Config())(query, target).counts
    assert int(counts["masked_siblings"]) == 2 * 1 + 3 * 2
    assert int(counts["negatives"]) == 2 * 3 + 3 * 2


def test_large_logits_do_not_overflow():
    query, target = random_turns([2, 2], 0)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=1e-4))(query, target).per_turn
    assert torch.isfinite(loss).all()


def test_a_loss_beyond_20_keeps_its_last_digits():
    """softplus is linear there: 24 instead of 24 + exp(-24)."""
    vectors = torch.eye(2, dtype=torch.float64)
    query, target = random_turns([1, 1], 0, dim=2)
    own = (query.sample_ids[:, None] == target.sample_ids).double().argmax(1)
    order = own.argsort()
    query = replace(query, vectors=vectors)
    target = replace(target, vectors=vectors.flip(0)[order])
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=1 / 24))
    got = loss(query, target).per_turn
    assert got.tolist() == pytest.approx([24 + math.exp(-24)] * 2, rel=1e-14, abs=0)
    assert got[0] != 24
