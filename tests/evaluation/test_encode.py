"""Embedding contents: each once, those of one image in one pass, kept in a store that is never half-read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from muco.core import Content, DataError, MucoError, TurnEncoder
from muco.core.image import EncodedImage
from muco.evaluation import encode
from muco.evaluation.embedding_store import EmbeddingStore
from muco.evaluation.encode import CachedEmbedder
from muco.evaluation.geometry import CoherenceMeter
from muco.evaluation.search.search import rank_all
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.poolers.turn_token import TurnToken
from tests.helpers.small import SMALL, TEXTS, picture
from tests.helpers.tasks import task_of


@pytest.fixture(scope="module")
def model() -> TurnEncoder:
    torch.manual_seed(0)
    backbone = QwenVL.build(QwenVL.Config(**SMALL), texts=TEXTS)
    return TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=backbone.hidden_dim))


def embedder(model, store, **settings) -> CachedEmbedder:
    return CachedEmbedder(model, MultiTurn(MultiTurn.Config(system="")), store, batch_tokens=128, **settings)


def contents() -> list[Content]:
    """Questions about four images, texts, an image alone, and some of them again."""
    images = [picture(colour, (56 + 28 * k, 56)) for k, colour in enumerate(("red", "green", "blue", "gold"))]
    given = [
        Content(text, (images[k % 4],)) for k, text in enumerate(("what", "where is it?", "a", "big") * 4)
    ]
    given += [Content(f"{k}{text}", (images[k % 4],)) for k, text in enumerate(("who", "why not?") * 6)]
    return [*given, Content("a red circle"), Content("", (images[0],)), Content("blue"), *given[:5]]


def open_store(path, **settings) -> EmbeddingStore:
    return EmbeddingStore(path, settings.pop("metadata", {"weights": "a"}), dim=32, **settings)


def test_contents_of_one_image_in_one_pass_have_the_vectors_and_scores_of_one_by_one(model, tmp_path):
    found = []
    for join_turns in (False, True):
        with open_store(tmp_path / str(join_turns)) as store:
            encoder = embedder(model, store, join_turns=join_turns)
            found.append(encoder.encode(contents()))
            passes = encoder.passes
            assert passes.num_contents == len(set(contents()))
            assert (passes.num_passes < passes.num_contents) == join_turns
    one_by_one, joined = (each.vectors.block(0, len(each.vectors)) for each in found)
    torch.testing.assert_close(joined, one_by_one, atol=1e-5, rtol=0)
    assert passes.num_passes == 4 + 2  # four images and two texts
    render = model.backbone.processor.render
    packer = MultiTurn(MultiTurn.Config(system=""))
    separate = [render(packer.inference(content)).cost for content in set(contents())]
    images = {content.images: render(packer.inference(content)).cost.patches for content in contents()}
    assert passes.tokens_alone == sum(cost.tokens for cost in separate) > 1.5 * passes.tokens
    assert passes.patches_alone == sum(cost.patches for cost in separate)
    assert passes.patches == sum(images.values())

    task = task_of(20, 11, None, [[k % 11] for k in range(20)])
    ranked = [rank_all(task, each[:20], each[-11:]) for each in (one_by_one, joined)]
    for separate, together in zip(*ranked, strict=True):
        assert separate.right[0].score == pytest.approx(together.right[0].score, abs=1e-5)


def test_each_distinct_content_is_encoded_once_and_never_again(model, tmp_path, monkeypatch):
    given = contents()
    seen: list[int] = []
    processor = model.backbone.processor
    collate = type(processor).collate

    def counted(self, rendered):
        seen.extend(key.content_id for each in rendered for key in each.keys)
        return collate(self, rendered)

    monkeypatch.setattr(type(processor), "collate", counted)
    with open_store(tmp_path) as store:
        encoder = embedder(model, store, join_turns=True)
        first = encoder.encode(given)
        assert sorted(seen) == sorted({content.content_id for content in given})
        again = encoder.encode(list(reversed(given)))
        assert torch.equal(again.vectors.block(0, len(given)).flip(0), first.vectors.block(0, len(given)))
    with open_store(tmp_path) as store:
        later = embedder(model, store, join_turns=True).encode(given)
        assert torch.equal(later.vectors.block(0, 5), first.vectors.block(0, 5))
    assert len(seen) == len({content.content_id for content in given})


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    """A store of all contents, encoded in small windows."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch, open_store(folder) as store:
        patch.setattr(encode, "WINDOW", 8)
        return folder, embedder(model, store, join_turns=True).encode(contents()).vectors


@pytest.mark.parametrize("kept", [0, 1, 7, 18])
def test_a_store_that_was_cut_short_is_completed_to_the_same_vectors(
    model, tmp_path, kept, stored, monkeypatch
):
    """Whatever a killed process had written: torn rows are dropped, whole ones kept."""
    monkeypatch.setattr(encode, "WINDOW", 8)
    folder, whole = stored
    shutil.copytree(folder, tmp_path / "cut")
    for name, size, torn in (("0000.vectors", 128, 77), ("0000.rows", 12, 5 if kept % 2 else 0)):
        with open(tmp_path / "cut" / name, "r+b") as file:
            file.truncate(kept * size + torn)
    with open_store(tmp_path / "cut") as store:
        assert len(store) == kept
        again = embedder(model, store, join_turns=True).encode(contents()).vectors
        assert len(store) == len({content.content_id for content in contents()})
    assert torch.equal(again.block(0, len(again)), whole.block(0, len(whole)))


def test_a_damaged_row_is_never_used(model, tmp_path, stored):
    shutil.copytree(stored[0], tmp_path, dirs_exist_ok=True)
    with open(tmp_path / "0000.vectors", "r+b") as file:
        file.seek(3 * 128 + 9)
        file.write(b"\xff")
    with (
        pytest.raises(DataError, match=r"row 3 is damaged.*Remove 0000\.rows"),
        open_store(tmp_path),
    ):
        pass
    (tmp_path / "0000.rows").unlink()
    (tmp_path / "0000.vectors").unlink()
    with open_store(tmp_path) as store:
        embedder(model, store).encode(contents())


def test_vectors_under_the_ids_of_others_are_never_used(tmp_path, stored):
    shutil.copytree(stored[0], tmp_path, dirs_exist_ok=True)
    rows = np.fromfile(tmp_path / "0000.rows", dtype=[("content_id", "<i8"), ("checksum", "<u4")])
    rows["content_id"] = np.roll(rows["content_id"], 1)
    rows.tofile(tmp_path / "0000.rows")
    with pytest.raises(DataError, match="row 0 is damaged"), open_store(tmp_path):
        pass


@pytest.mark.parametrize("text", ["[" * 10**5, "1" * 5000, "{"])
def test_a_store_with_broken_metadata_is_reported(tmp_path, text):
    (tmp_path / "about.json").write_text(text)
    with pytest.raises(DataError, match=r"about\.json: damaged: .* Remove "):
        open_store(tmp_path)


def test_a_store_belongs_to_one_model_and_a_part_to_one_process(tmp_path):
    with (
        open_store(tmp_path),
        pytest.raises(MucoError, match="another process is writing"),
        open_store(tmp_path),
    ):
        pass
    with pytest.raises(MucoError, match="another model"):
        open_store(tmp_path, metadata={"weights": "b"})
    assert json.loads((tmp_path / "about.json").read_text())["depends_on"] == {"weights": "a"}


def test_a_store_whose_files_cannot_be_opened_is_reported(tmp_path):
    (tmp_path / "0000.rows").mkdir()
    with (
        pytest.raises(MucoError, match=r"0000\.rows is .* no regular file"),
        open_store(tmp_path),
    ):
        pass


def test_float16_is_kept_as_such_and_read_as_float32(model, tmp_path):
    with open_store(tmp_path / "32") as whole, open_store(tmp_path / "16", dtype="float16") as half:
        expected = embedder(model, whole).encode(contents()).vectors.block(0, 9)
        found = embedder(model, half).encode(contents()).vectors.block(0, 9)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.half().float())
    assert (tmp_path / "16/0000.vectors").stat().st_size * 2 == (tmp_path / "32/0000.vectors").stat().st_size


def test_parts_of_several_processes_are_read_together(tmp_path):
    rows = torch.randn(6, 32)
    with open_store(tmp_path) as first, open_store(tmp_path, part=1) as second:
        first.add([10, 11, 12], rows[:3])
        second.add([20, 21, 22], rows[3:])
        first.refresh()
        assert first.find(np.array([21, 5, 10])).tolist() == [4, -1, 0]
        found = first.vectors(np.array([22, 10, 11, 20]))
        assert torch.equal(found.block(0, 4), rows[[5, 0, 1, 3]])
        assert torch.equal(found.take(torch.tensor([1])), rows[:1])


@pytest.mark.parametrize("data", [b"", b"\x89PNG, cut", picture("red", (56, 56)).data[:-40]])
def test_an_image_that_cannot_be_read_is_reported_with_its_text(model, tmp_path, data):
    with open_store(tmp_path) as store, pytest.raises(DataError, match="image"):
        embedder(model, store).encode([Content("fine"), Content("what is it?", (EncodedImage(data),))])


def test_coherence_is_what_its_definitions_say(tmp_path, model):
    given = contents()
    with open_store(tmp_path) as store:
        encoder = embedder(model, store)
        queries, pool = encoder.encode(given[:28]), encoder.encode(given[28:])

        rankings = rank_all(task_of(28, len(given) - 28, None, [[3]] * 28), queries.vectors, pool.vectors)
        meter = CoherenceMeter()
        meter.add(queries, pool, rankings)
        found = meter.result()
        vectors = encoder.encode(given).vectors.block(0, len(given)).double()
    distinct = {content.content_id: index for index, content in reversed(list(enumerate(given)))}
    indices = list(distinct.values())
    text = vectors[[p for p in indices if not given[p].images]].mean(0)
    image = vectors[[p for p in indices if given[p].images]].mean(0)
    assert found.modality_gap == pytest.approx(float((text - image).norm()), rel=1e-5)
    distances = [(vectors[k] - vectors[31]).pow(2).sum() for k in range(28)]
    assert found.alignment == pytest.approx(float(sum(distances) / 28), rel=1e-4)
    pairs = [(a, b) for i, a in enumerate(indices) for b in indices[:i]]
    spread = [float((-2 * (vectors[a] - vectors[b]).pow(2).sum()).exp()) for a, b in pairs]
    assert found.uniformity == pytest.approx(float(np.log(np.mean(spread))), rel=1e-4)
    first = [p for p in range(28) if distinct[given[p].content_id] == p]
    cosines: dict[bool, list[float]] = {True: [], False: []}
    for i, a in enumerate(first):
        for b in first[:i]:
            cosines[given[a].images == given[b].images].append(float(vectors[a] @ vectors[b]))
    assert found.turn_agreement == pytest.approx(np.mean(cosines[True]), rel=1e-5)
    assert found.turn_agreement_others == pytest.approx(np.mean(cosines[False]), rel=1e-5)
