"""Packed rows: every kernel's arithmetic against a dense mask, and dialogues as if they were alone."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from muco.core import MucoError
from muco.plugins.backbones.decoder.attention import choose_kernel, layout_of
from muco.plugins.backbones.decoder.attention.flash_varlen import VarlenLayout
from muco.plugins.backbones.decoder.backbone import DecoderBackbone
from muco.plugins.backbones.llava import Llava
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.testing import dialogue_of, states
from tests.helpers.small import FAMILIES, LLAVA_FAMILIES, SMALL, TEXTS, picture, small, small_llava

HEADS, KV_HEADS, SIZE = 4, 2, 8
CPU = torch.device("cpu")

dialogue = st.one_of(
    st.integers(1, 70).map(lambda size: [0] * size),
    st.tuples(st.integers(0, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4)).map(
        lambda sizes: [0] * sizes[0] + [turn + 1 for turn, size in enumerate(sizes[1]) for _ in range(size)]
    ),
)
"""The segment_ids of one dialogue's tokens: causal, or a prefix (empty too) and isolated turns. Some
dialogues have more keys than `sdpa` computes by the plain formula on a CPU."""


class Layer(torch.nn.Module):
    """What a kernel asks of transformers' attention layer."""

    num_key_value_groups = HEADS // KV_HEADS
    is_causal = True


def row_of(dialogues: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    cu_seqlens = torch.tensor([0, *torch.tensor([len(each) for each in dialogues]).cumsum(0).tolist()])
    return cu_seqlens, torch.tensor([[segment for each in dialogues for segment in each]])


def heads(length: int) -> list[torch.Tensor]:
    torch.manual_seed(length)
    return [
        torch.randn(1, number, length, SIZE, dtype=torch.float64, requires_grad=True)
        for number in (HEADS, KV_HEADS, KV_HEADS)
    ]


def dense(query, key, value, cu_seqlens, segment_ids, *, causal=True):
    """Attention with one mask over the whole row, written from the rule."""
    length = int(cu_seqlens[-1])
    owner = [
        index for index, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())) for _ in range(start, stop)
    ]
    segment = segment_ids[0].tolist()
    sees = [
        [
            (k <= q or not causal) and owner[k] == owner[q] and (segment[k] == 0 or segment[k] == segment[q])
            for k in range(length)
        ]
        for q in range(length)
    ]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=torch.tensor(sees), scale=0.3, enable_gqa=True
    ).transpose(1, 2)


@settings(max_examples=40)
@given(dialogues=st.lists(dialogue, min_size=1, max_size=7), causal=st.booleans())
def test_sdpa_in_buckets_equals_one_dense_mask_with_gradient(dialogues, causal):
    cu_seqlens, segment_ids = row_of(dialogues)
    states = heads(int(cu_seqlens[-1]))
    isolated = segment_ids if (segment_ids > 0).any() else None
    layout = layout_of("sdpa", cu_seqlens, isolated, causal=causal)
    found = layout.attend(Layer(), *states, scaling=0.3, dropout=0.0)
    expected = dense(*states, cu_seqlens, segment_ids, causal=causal)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    grads = [torch.autograd.grad((each * weights).sum(), states) for each in (found, expected)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(dialogues=st.lists(dialogue, min_size=1, max_size=7), causal=st.booleans())
def test_the_segments_of_flash_varlen_equal_one_dense_mask(dialogues, causal):
    cu_seqlens, segment_ids = row_of(dialogues)
    query, key, value = heads(int(cu_seqlens[-1]))
    isolated = segment_ids if (segment_ids > 0).any() else None
    layout = VarlenLayout(cu_seqlens, isolated, causal=causal)
    index = slice(None) if layout.key_index is None else layout.key_index
    keys, values = key[:, :, index], value[:, :, index]
    parts = []
    spans = zip(pairwise(layout.query_ends.tolist()), pairwise(layout.key_ends.tolist()), strict=True)
    for (q_start, q_stop), (k_start, k_stop) in spans:
        queries, own = q_stop - q_start, k_stop - k_start
        # The kernel's causal mask ends with the sequences' last tokens.
        sees = torch.ones(queries, own, dtype=torch.bool)
        sees = sees.tril(own - queries) if causal else sees
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, q_start:q_stop],
                keys[:, :, k_start:k_stop],
                values[:, :, k_start:k_stop],
                attn_mask=sees,
                scale=0.3,
                enable_gqa=True,
            )
        )
    found = torch.cat(parts, dim=2).transpose(1, 2)
    expected = dense(query, key, value, cu_seqlens, segment_ids, causal=causal)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dialogues", [[[0] * 5, [0] * 130], [[0, 0, 1, 1, 2], [0] * 3, [1, 1, 2]]])
@pytest.mark.parametrize("causal", [True, False])
def test_flex_equals_one_dense_mask(dialogues, causal):
    cu_seqlens, segment_ids = row_of(dialogues)
    states = [each.detach() for each in heads(int(cu_seqlens[-1]))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile.*")
        isolated = segment_ids if (segment_ids > 0).any() else None
        layout = layout_of("flex", cu_seqlens, isolated, causal=causal)
        found = layout.attend(Layer(), *states, scaling=0.3, dropout=0.0)
    expected = dense(*states, cu_seqlens, segment_ids, causal=causal)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_kernel_that_cannot_run_here_is_an_error_and_auto_takes_what_can():
    assert choose_kernel("auto", CPU, half=False) == "sdpa"
    with pytest.raises(MucoError, match="flash_varlen needs a CUDA device"):
        choose_kernel("flash_varlen", CPU, half=True)
    with pytest.raises(MucoError, match="flex trains on CUDA devices only"):
        choose_kernel("flex", CPU, half=False)
    with pytest.raises(ValueError, match="flex is a kernel of packed rows"):
        QwenVL.Config.model_validate({**SMALL, "rows": "padded", "attention": "flex"})


def backbone(rows: str, family: str = "qwen2_vl", attention_direction: str = "causal") -> DecoderBackbone:
    torch.manual_seed(0)
    cls, of_family = (QwenVL, small) if family in FAMILIES else (Llava, small_llava)
    settings = of_family(family, rows=rows, attention_direction=attention_direction)
    return cls.build(cls.Config.model_validate(settings), texts=TEXTS).eval()


@pytest.fixture(scope="module")
def mixed():
    """Text and images, several images, isolated and causal turns, one token, lengths that vary."""
    images = [picture("red", (56, 56)), picture("blue", (84, 56))]
    return [
        dialogue_of(["what is it?", "where?", "a"], images[:1], context="isolated"),
        dialogue_of(["a"], ()),
        dialogue_of(["b" * 90], images),
        dialogue_of(["what?", "a longer text about nothing"], images[1:], context="causal"),
        dialogue_of(["", ""], (), context="isolated"),
    ]


CASES = [
    (family, attention_direction)
    for family in (*FAMILIES, *LLAVA_FAMILIES)
    for attention_direction in ("causal", "bidirectional_isolated")
]


def encodable(mixed, attention_direction):
    """Return those whose turns the attention_direction can encode."""
    several = [each for each in mixed if len(each.turns) > 1 and each.context == "causal"]
    return [each for each in mixed if attention_direction == "causal" or each not in several]


@pytest.mark.parametrize("rows", ["packed", "padded"])
@pytest.mark.parametrize(
    ("family", "attention_direction"), [*CASES, ("qwen2_vl", "bidirectional"), ("llava", "bidirectional")]
)
def test_dialogues_of_a_chunk_are_encoded_as_if_alone(rows, family, attention_direction, mixed):
    model = backbone(rows, family, attention_direction)
    mixed = encodable(mixed, attention_direction)
    if attention_direction == "bidirectional":
        mixed = [each for each in mixed if len(each.turns) == 1]
    together = states(model, mixed)
    separate = torch.cat([states(model, [each]) for each in mixed])
    assert float((together - separate).abs().max()) < 1e-5


@pytest.mark.parametrize(("family", "attention_direction"), CASES)
def test_packed_rows_hold_no_padding_and_equal_padded_ones(family, attention_direction, mixed):
    packed, padded = (
        backbone("packed", family, attention_direction),
        backbone("padded", family, attention_direction),
    )
    mixed = encodable(mixed, attention_direction)
    row, rows = packed.processor.prepare(mixed), padded.processor.prepare(mixed)
    assert row.num_padding_tokens == 0 < rows.num_padding_tokens
    assert row.num_tokens == rows.num_tokens == row.tensors["input_ids"].numel()
    difference = (states(packed, mixed) - states(padded, mixed)).abs().max()
    assert float(difference) < 1e-5


@pytest.mark.parametrize("family", [*FAMILIES, *LLAVA_FAMILIES])
def test_an_isolated_turn_equals_a_single_one_in_both_directions(family):
    """The prefix sees itself alone, so that it is the same whatever follows."""
    model = backbone("packed", family, "bidirectional_isolated")
    images = [picture("red", (84, 56))]
    questions = ["what is it?", "a", "where is it? " * 9]
    together = states(model, [dialogue_of(questions, images, "isolated")])
    separate = torch.cat([states(model, [dialogue_of([text], images)]) for text in questions])
    torch.testing.assert_close(together, separate, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("attention_direction", "prefix_sees", "turn_sees"),
    [("causal", False, False), ("bidirectional_isolated", False, True), ("bidirectional", True, True)],
)
@pytest.mark.parametrize("rows", ["packed", "padded"])
def test_who_sees_what_comes_later(rows, attention_direction, prefix_sees, turn_sees):
    """Another last token of a turn's text, and what it changes before."""
    model = backbone(rows, attention_direction=attention_direction)
    found = []
    for text in ("ab", "ac"):
        inputs = model.processor.prepare([dialogue_of([text], [picture("red", (56, 56))])])
        found.append((inputs, model.encode(inputs).hidden.detach()))
    (inputs, one), (_, other) = found
    start, changed = int(inputs.spans.start), (one - other).abs().amax(1) > 0
    assert bool(changed[:start].any()) == prefix_sees
    assert bool(changed[start]) == turn_sees
    assert changed[inputs.spans.token]


def test_turns_that_would_see_their_answers_are_refused():
    dialogue = dialogue_of(["a", "b"], ())
    for attention_direction in ("bidirectional", "bidirectional_isolated"):
        assert "causal_context" not in QwenVL.offers(
            QwenVL.Config.model_validate(small("qwen2_vl", attention_direction=attention_direction))
        )
        with pytest.raises(ValueError, match="cannot encode causal turns"):
            backbone("packed", attention_direction=attention_direction).processor.prepare([dialogue])


def test_sliding_windows_are_refused_where_rows_are_packed():
    model = backbone("padded", "qwen2_5_vl")
    model.model.language_model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(MucoError, match="sliding windows; take rows: padded"):
        QwenVL(model.model, model.processor, QwenVL.Config.model_validate(small("qwen2_5_vl")))
