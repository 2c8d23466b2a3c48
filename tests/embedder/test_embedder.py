"""Vectors of texts, images, both, and videos, from memory and from files."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers, lists, permutations
from PIL import Image

import muco
from muco.core import MucoError
from muco.core.errors import DataError
from muco.core.sample import Content
from muco.core.video import Video
from tests.helpers.models import write_model
from tests.helpers.small import SMALL_CLIP, picture

RED = picture("red", (56, 56))
BLUE = picture("blue", (90, 60))
ITEMS: list[Any] = [
    "a",
    RED.data,
    {"text": "what is it?", "image": RED.data},
    "a longer text of more words",
    BLUE.data,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("qwen") / "model", nested_dims=(8, 32))


@pytest.fixture(scope="module")
def model(folder) -> muco.Embedder:
    return muco.load(folder, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> muco.Embedder:
    backbone = {"name": "clip", **SMALL_CLIP}
    return muco.load(
        write_model(tmp_path_factory.mktemp("clip") / "m", backbone=backbone, pooler="turn_token")
    )


def pil(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(image.data))


def test_vectors_are_those_of_the_encoder_on_the_dialogue_of_training(model, folder):
    encoder, packer = model._encoder, model._packer
    content = Content("what is it?", (RED,))
    with torch.inference_mode():
        expected = encoder(encoder.backbone.processor.prepare([packer.inference(content)])).vectors
    np.testing.assert_array_equal(model.encode(content), expected.numpy())


def test_vectors_have_unit_length_and_one_item_is_one_row(model):
    vectors = model.encode(ITEMS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, 32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert model.encode("a").shape == (1, 32)


@given(order=permutations(range(5)), more=lists(integers(0, 4), max_size=4), budget=integers(1, 400))
def test_a_vector_depends_neither_on_other_items_nor_on_order_nor_on_the_budget(model, order, more, budget):
    separate = np.concatenate([model.encode(item) for item in ITEMS])
    chosen = [*order, *more]
    batched = model.encode([ITEMS[index] for index in chosen], batch_tokens=budget)
    np.testing.assert_allclose(batched, separate[chosen], atol=1e-5)


def test_windows_do_not_change_the_order(model, monkeypatch):
    whole = model.encode(ITEMS)
    monkeypatch.setattr("muco.embedder.embedder.WINDOW", 2)
    np.testing.assert_allclose(model.encode(ITEMS, show_progress=True), whole, atol=1e-5)


def test_an_image_is_the_same_as_file_bytes_pil_and_array(model, tmp_path):
    path = tmp_path / "red.png"
    path.write_bytes(RED.data)
    array = np.asarray(pil(RED).convert("RGB"))
    forms: list[Any] = [path, RED.data, pil(RED), array, RED, {"image": path}, {"images": [array]}]
    vectors = model.encode(forms)
    np.testing.assert_allclose(vectors, vectors[[0] * len(forms)], atol=1e-6)


def test_a_str_is_text_even_if_a_file_has_that_name(model, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(RED.data)
    before = model.encode("a")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(model.encode("a"), before)


def test_transparent_images_are_laid_on_white(model):
    clear = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    white = Image.new("RGB", (56, 56), "white")
    np.testing.assert_allclose(model.encode(clear), model.encode(white), atol=1e-6)


def test_exif_orientation_is_applied_to_pil_images_and_to_files(model, tmp_path):
    upright = Image.new("RGB", (56, 84), "white")
    upright.paste("red", (0, 0, 56, 28))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    turned.save(path, exif=exif)
    with Image.open(path) as opened:
        vectors = model.encode([upright, path, opened])
    np.testing.assert_allclose(vectors, vectors[[0, 0, 0]], atol=1e-6)


def test_an_instruction_is_put_before_the_text_as_it_is(model):
    expected = model.encode(["Find: a", {"text": "Find: ", "image": RED.data}])
    np.testing.assert_array_equal(model.encode(["a", RED.data], instruction="Find: "), expected)


def test_frames_are_a_video(model):
    frames = [RED.data, picture("blue", (56, 56)).data]
    expected = model.encode(Content("", (Video((RED, picture("blue", (56, 56)))),)))
    np.testing.assert_array_equal(model.encode({"video": frames}), expected)


def test_a_cut_vector_is_normalized_again(model):
    whole = model.encode(ITEMS)
    cut = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode(ITEMS, dim=8), cut, atol=1e-6)


@pytest.mark.parametrize(
    ("dim", "message"), [(16, "was trained for 8, 32"), (64, "was trained for 8, 32"), (0, "0")]
)
def test_a_size_that_was_not_trained_is_refused(model, dim, message):
    with pytest.raises(ValueError, match=message):
        model.encode("a", dim=dim)


def test_a_model_without_matryoshka_is_not_cut(clip):
    with pytest.raises(ValueError, match="not trained by a matryoshka loss"):
        clip.encode("a", dim=8)


@pytest.mark.parametrize("which", ["model", "clip"])
def test_isolated_turns_equal_one_by_one(which, request):
    embedder = request.getfixturevalue(which)
    questions = ["what is it?", "which color?", "a"]
    turns = embedder.encode_turns(RED.data, questions)
    single = embedder.encode([{"text": question, "image": RED.data} for question in questions])
    np.testing.assert_allclose(turns, single, atol=1e-5)


def test_causal_turns_are_those_of_one_dialogue(model):
    questions = ["what is it?", "which color?"]
    turns = model.encode_turns(RED.data, questions, context="causal")
    encoder = model._encoder
    first, second = (model._packer.inference(Content(question, (RED,))) for question in questions)
    dialogue = replace(first, turns=first.turns + second.turns, context="causal")
    with torch.inference_mode():
        expected = encoder(encoder.backbone.processor.prepare([dialogue])).vectors
    np.testing.assert_allclose(turns, expected.numpy(), atol=1e-6)
    assert np.abs(turns[1] - model.encode_turns(RED.data, questions)[1]).max() > 1e-4


def test_two_towers_have_no_causal_turns(clip):
    with pytest.raises(MucoError, match="does not offer causal turns"):
        clip.encode_turns(RED.data, ["a"], context="causal")


def test_turns_refuse_what_is_no_list_of_texts_and_unknown_contexts(model):
    for questions in ("what is it?", [], ()):
        with pytest.raises(ValueError, match="is a list of texts"):
            model.encode_turns(RED.data, questions)
    with pytest.raises(TypeError, match="the text of an item is int"):
        model.encode_turns(RED.data, [3])
    with pytest.raises(ValueError, match="context='both': choose isolated or causal"):
        model.encode_turns(RED.data, ["a"], context="both")


def test_a_search_takes_one_query(model):
    with pytest.raises(ValueError, match="`query` is one item"):
        model.search("s.parquet", ["a", "b"])


def test_info_says_what_the_vectors_depend_on(model, folder, clip):
    info = model.info
    assert (info.dim, info.nested_dims, info.step, info.recipe) == (32, (8, 32), 7, None)
    assert info.modalities == ("text", "image", "video")
    assert clip.info.modalities == ("text", "image")
    assert info.fingerprint == muco.load(folder).info.fingerprint != clip.info.fingerprint


def test_similarity_is_the_cosine(model):
    vectors = model.encode(ITEMS)
    np.testing.assert_allclose(np.diag(model.similarity(vectors, vectors)), 1, atol=1e-6)


def test_weights_are_loaded_as_bfloat16(folder):
    model = muco.load(folder, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model._encoder.backbone.parameters()} == {torch.bfloat16}
    assert model.encode("a").dtype == np.float32


BAD: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, "the list is empty"),
    ("", ValueError, "neither text nor image"),
    ({}, ValueError, "neither text nor image"),
    (["a", 3.5], TypeError, "item 1: an item of type float"),
    ({"txt": "a"}, ValueError, "item 0: an item has no key 'txt'"),
    ({"text": 3}, TypeError, "the text of an item is int"),
    (np.zeros((4, 4)), ValueError, "pixels are uint8"),
    (np.zeros((2, 8, 8, 3), np.uint8), ValueError, "give several as a list"),
    ((each for each in "ab"), TypeError, "several items are a list"),
    (bytearray(RED.data), TypeError, "an item of type bytearray"),
    ({"image": "photos/1.jpg"}, TypeError, "an image that is a str, 'photos/1.jpg'; a file is given as"),
    ({"images": Path("1.jpg")}, TypeError, "'images' of an item is PosixPath; give a list of images"),
    ({"video": b"film"}, TypeError, "'video' of an item is bytes; give a list of frames"),
    ({"video": [RED.data, BLUE.data]}, DataError, "frames of a video differ in size"),
    (["a", "\ud800"], DataError, "item 1: the text is not valid Unicode"),
    (
        Image.new("RGB", (0, 5)),
        DataError,
        "Pillow that cannot be read: cannot write empty",
    ),
    (Path("nope.png"), DataError, "nope.png: No such file"),
    (["a", b"no image"], DataError, "item 1: no PNG"),
    (["a", RED.data[:200]], DataError, "item 1: broken image"),
    ("word " * 5000, DataError, "the model's context has 4,096"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), BAD)
def test_bad_input_is_named(model, inputs, error, message):
    with pytest.raises(error, match=message):
        model.encode(inputs)


def test_a_truncated_file_that_pillow_has_opened_is_named(model):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    opened = Image.open(io.BytesIO(buffer.getvalue()[:9000]))
    with pytest.raises(DataError, match="item 0: an image of Pillow that cannot be read: image file is"):
        model.encode(opened)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_grey_of_16_bits_is_scaled_to_8_bits(model, mode):
    values = np.linspace(0, 65535, 56 * 56).astype(np.int32).reshape(56, 56)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    deep = Image.fromarray(values)
    if mode == "I;16B":
        deep = Image.frombytes(mode, (56, 56), values.astype(">u2").tobytes())
    elif mode == "I;16":
        deep = deep.convert(mode)
    assert deep.mode == mode
    np.testing.assert_allclose(model.encode(deep), model.encode(grey), atol=1e-6)


def test_transparency_of_every_mode_is_laid_on_white(model):
    clear = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    forms = [clear.convert("RGBa"), clear.convert("LA"), clear.convert("LA").convert("La")]
    white = model.encode(Image.new("RGB", (56, 56), "white"))
    np.testing.assert_allclose(model.encode(forms), white[[0, 0, 0]], atol=1e-6)


def test_images_and_frames_may_be_one_array(model):
    pixels = np.stack([np.asarray(pil(each).convert("RGB")) for each in (RED, picture("blue", (56, 56)))])
    for key in ("images", "video"):
        expected = model.encode({key: list(pixels)})
        np.testing.assert_array_equal(model.encode({key: pixels}), expected)


def test_a_sliver_is_resized_to_a_square_as_public_code_does(model):
    assert model.encode(Image.new("RGB", (1, 5000), "red")).shape == (1, 32)


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no such folder"), (".", "neither a run folder")])
def test_what_is_no_model_is_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MucoError, match=message):
        muco.load(name)
