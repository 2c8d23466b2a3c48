"""Videos in every family that reads them, against transformers' own processors and models."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from muco.core import (
    Content,
    DataError,
    Dialogue,
    EncodedImage,
    Message,
    MucoError,
    Pair,
    Sample,
    Turn,
    TurnEncoder,
    Video,
)
from muco.core.compatibility import no_video
from muco.core.component import ComponentConfig
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.plugins.backbones.clip import Clip
from muco.plugins.backbones.llava import Llava
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.backbones.qwen_vl.video import cut
from muco.plugins.poolers.turn_token import TurnToken
from muco.testing import check_backbone, dialogue_of, states
from tests.helpers.gradients import gradients, same
from tests.helpers.small import FAMILIES, SMALL_CLIP, TEXTS, picture, small, small_llava

READING = (*FAMILIES, "llava_onevision")
ASKED = ["what moves?", "a", "where is it? " * 5]


def film(number: int, size: tuple[int, int], seconds: float = 0.5, *, seed: int = 0) -> Video:
    """Return a video of noise, so that every pixel of every frame counts."""
    noise = np.random.default_rng(seed).integers(0, 255, (number, size[1], size[0], 3), dtype=np.uint8)
    return Video(tuple(_png(frame) for frame in noise), seconds)


def _png(pixels: np.ndarray) -> EncodedImage:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue())


def build(family: str, **options: object):
    torch.manual_seed(0)
    if family == "llava_onevision":
        return Llava.build(Llava.Config.model_validate(small_llava(family, **options)), texts=TEXTS).eval()
    bounds = {"min_frame_pixels": 56 * 56, "max_frame_pixels": 128 * 128, "template": "chatml"}
    settings = small(family, **{**bounds, **options})
    return QwenVL.build(QwenVL.Config.model_validate(settings), texts=TEXTS).eval()


def exact(family: str) -> tuple[int, int]:
    """Return a size of frames that no family changes."""
    return {"qwen3_vl": (96, 64), "llava_onevision": (56, 56)}.get(family, (84, 56))


@pytest.fixture(scope="module", params=READING)
def backbone(request):
    return build(request.param)


def theirs(backbone, videos: list[Video], text: str):
    """Return the inputs that transformers' own processor makes of a text and the frames that we take."""
    import transformers as hf
    from transformers.models.llava_onevision.video_processing_llava_onevision import (
        LlavaOnevisionVideoProcessor,
    )
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    processor, family = backbone.processor, backbone.model.config.model_type
    most = processor.max_frames if family == "llava_onevision" else processor.frames.max_frames
    images = processor.image_processor
    colors = {"image_mean": images.image_mean, "image_std": images.image_std}
    metadata, frames = [], []
    for video in videos:
        indices = video.frame_indices(most)
        if family == "qwen3_vl" and len(indices) % 2:
            indices.append(indices[-1])
        metadata.append(
            VideoMetadata(
                total_num_frames=len(video.frames), fps=1 / video.seconds_per_frame, frames_indices=indices
            )
        )
        frames.append(torch.from_numpy(np.stack([video.frames[at].decode() for at in indices])))
    settings = {"do_sample_frames": False, "video_metadata": metadata}
    if family == "llava_onevision":
        side = {"height": 56, "width": 56}
        maker = LlavaOnevisionVideoProcessor(size=side, **colors)
        whole = hf.LlavaOnevisionProcessor(
            images, processor.tokenizer, maker, num_image_tokens=16, vision_feature_select_strategy="full"
        )
        return whole(text=[text], videos=frames, return_tensors="pt", videos_kwargs=settings)
    many = len(metadata[0].frames_indices) if family == "qwen3_vl" else 1
    sizes = {
        "shortest_edge": many * processor.frames.min_pixels,
        "longest_edge": many * processor.frames.max_pixels,
    }
    patch = {"patch_size": images.patch_size}
    own = Qwen3VLVideoProcessor if family == "qwen3_vl" else Qwen2VLVideoProcessor
    maker = own(size=sizes, cap_pixels_per_frame=False, **patch, **colors)
    cls = {
        "qwen2_vl": hf.Qwen2VLProcessor,
        "qwen2_5_vl": hf.Qwen2_5_VLProcessor,
        "qwen3_vl": hf.Qwen3VLProcessor,
    }
    whole = cls[family](images, processor.tokenizer, maker)
    return whole(text=[text], videos=frames, return_tensors="pt", videos_kwargs=settings)


def rendered(backbone, videos: list[Video], question: str) -> str:
    """Return the dialogue's text with one placeholder a video."""
    is_llava = backbone.model.config.model_type == "llava_onevision"
    shown = "<video>" if is_llava else "<|vision_start|><|video_pad|><|vision_end|>"
    end = "" if is_llava else "\n"
    body = f"{shown}\n" * len(videos) + question + end
    return f"<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n<|emb|><|im_end|>"


CASES = [(4, 8, 0.5), (3, 8, 0.3), (1, 8, 1.0), (11, 4, 0.45), (11, 5, 2.0)]
"""Frames, the most that are taken, seconds between them."""


@pytest.mark.parametrize(("number", "most", "seconds"), CASES)
@pytest.mark.parametrize("family", READING)
def test_tokens_positions_and_states_are_those_of_transformers(family, number, most, seconds):
    backbone = build(family, max_frames=most)
    videos = [film(number, exact(family), seconds)]
    made = theirs(backbone, videos, rendered(backbone, videos, ASKED[0]))
    inputs = backbone.processor.prepare([dialogue_of(ASKED[:1], videos)])
    assert torch.equal(inputs.tensors["input_ids"], made["input_ids"])
    whole = copy.deepcopy(backbone.model)
    whole.set_attn_implementation("sdpa")
    made.pop("video_metadata", None)
    if family != "llava_onevision":
        grids = {"video_grid_thw": made["video_grid_thw"]}
        if family == "qwen2_5_vl":
            grids["second_per_grid_ts"] = made["second_per_grid_ts"]
        positions, _ = whole.get_rope_index(made["input_ids"], made["mm_token_type_ids"], **grids)
        assert torch.equal(inputs.tensors["position_ids"], positions)
        assert torch.equal(inputs.tensors["image_grid_thw"], made["video_grid_thw"])
    with torch.no_grad():
        expected = whole(**made, use_cache=False).last_hidden_state[0]
        found = backbone.encode(inputs).hidden
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if family != "llava_onevision" and number > 1:
        assert len(positions[0, 0].unique()) > 1


@pytest.mark.parametrize("size", [(31, 97), (300, 170), (20, 16), (150, 149)])
def test_frames_are_resized_as_transformers_does(backbone, size):
    """To the same size; the pixels differ by the rounding of two libraries, on pictures without edges."""
    x, y = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 120, size[1]))
    smooth = np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)
    video = Video((_png(smooth), _png(255 - smooth)))
    made = theirs(backbone, [video], rendered(backbone, [video], "a"))
    inputs = backbone.processor.prepare([dialogue_of(["a"], [video])])
    assert torch.equal(inputs.tensors["input_ids"], made["input_ids"])
    pixels = backbone.processor.colors(inputs.tensors["pixel_values"])
    expected = made["pixel_values_videos"]
    torch.testing.assert_close(pixels, expected.reshape(pixels.shape), rtol=0, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_of_equal_frames_is_seen_as_their_image(family):
    backbone = build(family, min_pixels=56 * 56, max_pixels=128 * 128)
    image = film(1, (150, 90)).frames[0]
    shown, still = (
        backbone.processor.prepare([dialogue_of(["a"], [each])]).tensors
        for each in (Video((image, image)), image)
    )
    assert torch.equal(shown["pixel_values"], still["pixel_values"])
    assert torch.equal(shown["image_grid_thw"], still["image_grid_thw"])


def mixed(backbone, context: str) -> list[Dialogue]:
    """Return dialogues of images and videos, in the prefix and in a turn."""
    size = exact(backbone.model.config.model_type)
    image, video, other = picture("red", (70, 40)), film(3, size), film(2, (50, 80), 1.5)
    dialogue = dialogue_of(ASKED, [video, image, other], context)
    first, second, *others = dialogue.turns
    message = Message("user", Content("beside it", (image, film(5, size))))
    turns = (first, Turn((message,), second.key), *others)
    return [replace(dialogue, turns=turns), dialogue_of(ASKED[:2], [other], context), dialogue_of(["a"], ())]


def test_isolated_turns_over_videos_equal_single_passes(backbone):
    """Promise 1, with images and videos side by side."""
    rows = mixed(backbone, "isolated")
    separate = [replace(row, turns=(turn,)) for row in rows for turn in row.turns]
    expected = torch.cat([states(backbone, [dialogue]) for dialogue in separate])
    torch.testing.assert_close(states(backbone, rows), expected, rtol=0, atol=1e-5)


def test_images_and_videos_mix_as_in_transformers(backbone):
    """One pass of ours over both, two of theirs."""
    size = exact(backbone.model.config.model_type)
    visuals = [film(3, size), picture("red", size), film(3, size, 1.1, seed=1)]
    dialogue = dialogue_of(ASKED[:1], visuals)
    inputs = backbone.processor.prepare([dialogue])
    ids, processor = inputs.tensors["input_ids"], backbone.processor
    videos = [each for each in visuals if isinstance(each, Video)]
    made = theirs(backbone, videos, rendered(backbone, videos, ASKED[0]))
    kinds = (ids == processor.image_id).int() + 2 * (ids == processor.video_id).int()
    settings = {"input_ids": ids, "use_cache": False}
    images = [each.decode() for each in visuals if isinstance(each, EncodedImage)]
    if backbone.model.config.model_type == "llava_onevision":
        settings |= processor.image_processor([images], return_tensors="pt")
    else:
        settings |= processor.image_processor(images, return_tensors="pt")
        settings |= {"mm_token_type_ids": kinds}
    settings |= {
        name: made[name]
        for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
        if name in made
    }
    whole = copy.deepcopy(backbone.model)
    whole.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = whole(**settings).last_hidden_state[0]
        found = backbone.encode(inputs).hidden
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "rows"), [("qwen2_5_vl", "packed"), ("qwen3_vl", "padded"), ("llava_onevision", "packed")]
)
def test_keeps_the_contract(registry, tmp_path, family, rows):
    """Counts, pickling, features made before, and a round trip to the disk, all over videos."""
    name = "llava" if family == "llava_onevision" else "qwen_vl"
    settings = small_llava(family) if name == "llava" else small(family, min_frame_pixels=56 * 56)
    shown = [film(3, exact(family)), film(2, (50, 80))]
    check_backbone(registry, name, {**settings, "rows": rows}, texts=TEXTS, images=shown, folder=tmp_path)


def test_counts_are_those_of_the_chunk(backbone):
    rows = mixed(backbone, "causal")
    costs = [backbone.processor.render(row).cost for row in rows]
    inputs = backbone.processor.prepare(rows)
    assert sum(cost.tokens for cost in costs) == inputs.num_tokens
    # The rows share a picture, which is encoded once.
    assert max(cost.patches for cost in costs) <= inputs.num_patches < sum(cost.patches for cost in costs)
    pixels = inputs.tensors["pixel_values"]
    per_picture = 16 if pixels.dim() == 4 else 1
    assert len(pixels) * per_picture == inputs.num_patches


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Samples of videos, of an image beside one, of text alone; a target and a negative are videos too."""
    samples = []
    for number in range(3):
        video = film(1 + number, (56, 56), 0.5 + number, seed=number)
        images = ((video,), (video, picture("red", (60, 40))), ())[number % 3]
        answers = Content(f"a {number}"), Content("", (film(2, (56, 84), seed=9 + number),))
        pairs = tuple(
            Pair(
                f"task{turn}",
                (Content(f"what {number}"),),
                answer,
                (Content(f"not {number}", (film(3, (56, 56), seed=20),)),) if number == 0 else (),
            )
            for turn, answer in enumerate(answers[: 1 + number % 2])
        )
        samples.append(Sample(f"{number}", "ragged", images, pairs))
    folder = tmp_path_factory.mktemp("films")
    write_shards(samples, folder / "shards", metadata={})
    return ShardReader(folder / "shards")


@pytest.mark.parametrize("family", READING[2:])
def test_cached_gradients_equal_plain_ones(family, reader):
    """Promise 3, the tower's features kept from the first pass where it is frozen."""
    backbone = build(family)
    settings = {"context": "isolated", "num_samples": 3}
    model = encoder(backbone)
    whole = gradients(model, reader, cached=False, budget=None, **settings)
    tower = {f"backbone.{name}" for name, _ in backbone.named_parameters() if _in_tower(name)}
    assert tower & whole[1].keys()
    same(gradients(model, reader, cached=True, budget=100, **settings), whole, 1e-10)
    backbone.vision.requires_grad_(False)
    kept = gradients(model, reader, cached=True, budget=100, **settings)
    assert kept[1].keys() == whole[1].keys() - tower
    same(kept, (whole[0], {name: whole[1][name] for name in kept[1]}), 1e-10)


def _in_tower(name: str) -> bool:
    return name.startswith(("model.vision_tower.", "model.visual."))


def encoder(backbone) -> TurnEncoder:
    return TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=backbone.hidden_dim)).train()


def test_frames_that_cannot_be_taken_are_named(backbone):
    frames = film(2, (60, 60)).frames
    for broken, message in (
        (Video((*frames, picture("red", (30, 60)))), "differ in size"),
        (Video((EncodedImage(b"none"),)), "no PNG"),
        (Video((replace(frames[0], data=frames[0].data[:900]),)), "broken image"),
    ):
        with pytest.raises(DataError, match=message):
            backbone.processor.prepare([dialogue_of(["a"], [broken])])


def test_a_long_video_is_named():
    backbone = build("qwen2_vl")
    with pytest.raises(DataError, match="video of 600 x 2 pixels"):
        backbone.processor.prepare([dialogue_of(["a"], [Video((picture("red", (600, 2)),))])])


def test_bounds_of_frames_hold_for_each(backbone):
    if backbone.model.config.model_type == "llava_onevision":
        assert backbone.processor.render(dialogue_of(["a"], [film(3, (500, 90))])).cost.patches == 3 * 16
        return
    processor = backbone.processor
    for size in ((500, 90), (30, 20), (91, 99)):
        made = cut(film(3, size), processor.frames, processor.image_processor)
        assert 56 * 56 <= made.height * made.width <= 128 * 128


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_families_that_read_no_video_say_so(family):
    config = Llava.Config.model_validate(small_llava(family))
    assert "video" not in Llava.offers(config)
    backbone = Llava.build(config, texts=TEXTS)
    with pytest.raises(MucoError, match=r"only LLaVA-OneVision reads videos.*llava, qwen_vl"):
        backbone.processor.render(dialogue_of(["a"], [film(2, (40, 40))]))


def test_clip_reads_no_video_and_says_so():
    config = Clip.Config.model_validate(SMALL_CLIP)
    assert "video" not in Clip.offers(config)
    backbone = Clip.build(config, texts=TEXTS)
    with pytest.raises(MucoError, match=r"clip reads no video.*llava, qwen_vl"):
        backbone.processor.prepare([dialogue_of(["a"], [film(2, (40, 40))])])


def test_a_backbone_without_defaults_is_not_among_those_that_offer_a_feature(monkeypatch):
    class Needy(QwenVL):
        class Config(ComponentConfig):
            size: int
            """Required."""

        @classmethod
        def offers(cls, config):
            return frozenset({"video"} if config.size else ())

    monkeypatch.setattr("muco.plugins.backbones.llava.Llava", Needy)
    assert str(no_video("clip")).endswith("Backbones that read videos: qwen_vl")
