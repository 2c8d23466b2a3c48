"""The pictures and texts of `scenes`, read back by pixels and by words."""

import re
from functools import cache
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from muco.core.errors import MucoError
from muco.core.registry import default_registry
from muco.plugins.datasets.scenes.captions import caption, rephrased_caption
from muco.plugins.datasets.scenes.drawing import BACKGROUND_RGB, COLOR_RGB, draw_image
from muco.plugins.datasets.scenes.edits import changes, near_scenes
from muco.plugins.datasets.scenes.source import Scenes
from muco.plugins.datasets.scenes.tasks import PAIR_TASKS, TURN_TASKS
from muco.plugins.datasets.scenes.world import (
    COLORS,
    SHAPES,
    Scene,
    SceneObject,
    SceneWorld,
    draw_scene,
    seeded,
)
from tests.helpers.scene_reader import GRID, Facts, cell, pixels, read_caption, read_image, read_rephrased

TURNS = [
    "classification",
    "global_vqa_1",
    "global_vqa_2",
    "local_vqa_1",
    "local_vqa_2",
    "creative",
    "retrieval",
]
PLACES = {place for line in GRID for place in line}
NAMES = {"shapes": SHAPES, "colors": COLORS}
ALL_PAIRS = dict.fromkeys(PAIR_TASKS, 1)
LARGE = {"image_size_pixels": 84, "cells_per_side": 3}  # the reader of pixels is cruder than an eye


def draw(count: int, **config) -> list:
    return list(Scenes(Scenes.Config(num_samples=count, **config)).samples())


@cache
def turns(num_objects: int) -> list:
    return draw(16, turn_share=1, num_objects=num_objects, **NAMES, **LARGE)


@cache
def pairs(kind: str, num_objects: int = 2, num_negatives: int = 1) -> list:
    return draw(
        12,
        turn_share=0,
        pairs={kind: 1},
        num_objects=num_objects,
        num_negatives=num_negatives,
        **LARGE,
    )


def text_of(sample, task: str) -> str:
    return next(pair.target.text for pair in sample.pairs if pair.task == task)


def query_of(sample, task: str) -> str:
    """The first paraphrase."""
    return next(pair.queries[0].text for pair in sample.pairs if pair.task == task)


def shown(target) -> Facts:
    (image,) = target.images
    return read_image(image)


# The picture is what the words say.


@pytest.mark.parametrize("num_objects", [1, 2, 3, 4])
def test_a_reader_of_pixels_finds_what_the_caption_says(num_objects):
    for sample in turns(num_objects):
        (image,) = sample.images
        assert read_image(image) == read_caption(text_of(sample, "retrieval"))


def test_nine_objects_fill_the_grid():
    world = SceneWorld(num_objects=9, **NAMES, **LARGE)
    for index in range(5):
        scene = draw_scene(world, seeded(index), "train")
        facts = read_image(draw_image(scene, 84))
        assert facts == read_caption(caption(scene)) == read_rephrased(rephrased_caption(scene))
        assert len(facts.objects) == 9


def test_four_objects_fill_the_corners():
    world = SceneWorld(num_objects=4, shapes=["circle", "square", "diamond", "triangle"])
    corners = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
    for index in range(20):
        scene = draw_scene(world, seeded(index), "train")
        picture = pixels(draw_image(scene, 56))
        colors = {place: color for _, color, _, place in read_caption(caption(scene)).objects}
        assert colors.keys() == corners.keys()
        for place, (row, column) in corners.items():
            np.testing.assert_array_equal(picture[row * 28 + 14, column * 28 + 14], COLOR_RGB[colors[place]])


def test_objects_lie_in_the_corners_by_default():
    for index in range(50):
        scene = draw_scene(SceneWorld(), seeded(index), "train")
        assert {it.place for it in scene.objects} <= set(GRID[0] + GRID[2]) - {"top", "bottom"}


def test_every_color_stands_out_from_every_background():
    for ground in BACKGROUND_RGB.values():
        for rgb in COLOR_RGB.values():
            assert max(abs(a - b) for a, b in zip(ground, rgb, strict=True)) >= 60


def test_no_two_pictures_are_equal():
    world = SceneWorld(shapes=["circle"], colors=["red"], num_objects=1)
    images = [draw_image(draw_scene(world, seeded(index), "train"), 56) for index in range(500)]
    assert len({image.content_id for image in images}) == 500


def test_images_have_the_size_that_is_set():
    for size in (32, 56, 100):
        (sample,) = draw(1, image_size_pixels=size, turn_share=1)
        assert sample.images[0].decode().size == (size, size)


# The seven turns.


@pytest.mark.parametrize("num_objects", [1, 2, 3, 4])
def test_a_turn_sample_asks_the_seven_questions_of_one_picture(num_objects):
    for sample in turns(num_objects):
        assert [pair.task for pair in sample.pairs] == TURNS
        assert len(sample.images) == 1
        for pair in sample.pairs:
            assert not pair.target.images
            assert len({query.text for query in pair.queries}) == len(pair.queries) >= 3


@pytest.mark.parametrize("num_objects", [1, 2, 3, 4])
def test_the_answers_follow_from_the_caption(num_objects):
    for sample in turns(num_objects):
        facts = read_caption(text_of(sample, "retrieval"))
        by_shape = {shape: (size, color, place) for size, color, shape, place in facts.objects}
        by_color = {color: (shape, place) for _, color, shape, place in facts.objects}

        named = re.findall(r"an? (?:small |large )?(\w+)", text_of(sample, "classification"))
        assert named == sorted(by_shape)
        assert text_of(sample, "global_vqa_1").split(" ", 1)[1] == f"{facts.background} background"

        shape = re.search(r"does the (\w+) look", query_of(sample, "local_vqa_1"))[1]
        size, color, _ = by_shape[shape]
        assert text_of(sample, "local_vqa_1") == f"{size} and {color}"

        color = re.search(r"is the (\w+) object", query_of(sample, "local_vqa_2"))[1]
        assert re.findall(r"an? (\w+) (?:at|in) the (.+)", text_of(sample, "local_vqa_2")) == [
            by_color[color]
        ]

        mirrored = read_mirrored(text_of(sample, "creative"))
        assert mirrored == {
            (color, shape): mirror(by_shape[shape][2]) for color, (shape, _) in by_color.items()
        }


def read_mirrored(text: str) -> dict:
    phrases = re.split(r", | and ", text)
    found = [re.fullmatch(r"an? (\w+) (\w+) (?:at|in) the (.+)", phrase).groups() for phrase in phrases]
    return {(color, shape): place for color, shape, place in found}


def mirror(place: str) -> str:
    return next(row[2 - row.index(place)] for row in GRID if place in row)


@pytest.mark.parametrize("num_objects", [2, 3, 4])
def test_the_arrangement_is_described_object_by_object(num_objects):
    where = {place: (row, column) for row, line in enumerate(GRID) for column, place in enumerate(line)}
    for sample in turns(num_objects):
        facts = read_caption(text_of(sample, "retrieval"))
        places = {shape: where[place] for _, _, shape, place in facts.objects}
        first, *steps = text_of(sample, "global_vqa_2").split(" is ")
        before = first.removeprefix("the ")
        seen = [before]
        for step in steps:
            relation, after = re.fullmatch(r"(.+?) the (\w+)(?:, which)?", step).groups()
            (row, column), (next_row, next_column) = places[before], places[after]
            words = ["above"] * (row < next_row) + ["left of"] * (column < next_column)
            words += ["right of"] * (column > next_column)
            assert relation == " and ".join(words)
            seen.append(before := after)
        assert sorted(seen) == sorted(places)


def test_local_questions_are_about_different_objects():
    questions = {query_of(sample, "local_vqa_1") for sample in turns(2)}
    assert len(questions) > 5


# The single pairs.


@pytest.mark.parametrize("kind", ["caption_to_image", "caption_to_captioned_image"])
def test_a_caption_leads_to_its_picture(kind):
    for sample in pairs(kind):
        (pair,) = sample.pairs
        assert not sample.images
        assert shown(pair.target) == read_caption(pair.queries[0].text.split(": ", 1)[1])


@pytest.mark.parametrize("num_objects", [1, 2, 4])
def test_a_paraphrase_says_the_same_in_other_words(num_objects):
    for sample in pairs("caption_paraphrase", num_objects):
        (pair,) = sample.pairs
        paraphrased = pair.queries[0].text.split(": ", 1)[1]
        assert read_caption(paraphrased) == read_rephrased(pair.target.text)
        assert paraphrased != pair.target.text


@pytest.mark.parametrize("kind", ["edit_to_image", "edit_to_captioned_image"])
@pytest.mark.parametrize("num_objects", [1, 2, 4])
def test_an_edit_changes_what_it_says_and_nothing_else(kind, num_objects):
    for sample in pairs(kind, num_objects):
        (pair,) = sample.pairs
        before, after = read_image(sample.images[0]), shown(pair.target)
        order = pair.queries[0].text.split(": ", 1)[1].removesuffix(".")
        assert edited(before, order) == after
        if not order.startswith("make the background"):
            assert before.background == after.background
            touched = {place for *_, place in before.objects ^ after.objects}
            for place in PLACES - touched:
                np.testing.assert_array_equal(
                    cell_at(sample.images[0], place), cell_at(pair.target.images[0], place)
                )


def edited(facts: Facts, order: str) -> Facts:
    if background := re.fullmatch(r"make the background (.+)", order):
        return Facts(facts.objects, background[1])
    color, shape, value = re.fullmatch(
        r"(?:make|turn|put) the (\w+) (\w+) (?:into an? |at the |in the )?(.+)", order
    ).groups()
    (old,) = (it for it in facts.objects if it[1:3] == (color, shape))
    size, _, _, place = old
    new = {
        "size": (value, color, shape, place),
        "color": (size, value, shape, place),
        "shape": (size, color, value, place),
        "place": (size, color, shape, value),
    }[kind_of(value)]
    return Facts(facts.objects - {old} | {new}, facts.background)


def kind_of(value: str) -> str:
    kinds = {"size": ("small", "large"), "color": COLORS, "shape": SHAPES, "place": PLACES}
    return next(kind for kind, values in kinds.items() if value in values)


def cell_at(image, place: str) -> np.ndarray:
    row = next(index for index, line in enumerate(GRID) if place in line)
    return cell(pixels(image), row, GRID[row].index(place))


@pytest.mark.parametrize("kind", ["same_scene", "same_scene_to_captioned_image"])
def test_the_same_scene_is_another_picture_of_the_same_objects(kind):
    for sample in pairs(kind):
        (pair,) = sample.pairs
        query, target = read_image(sample.images[0]), shown(pair.target)
        assert query.objects == target.objects
        assert query.background != target.background


@pytest.mark.parametrize("num_objects", [1, 2, 3])
def test_a_crop_is_the_part_of_the_picture_that_is_asked_for(num_objects):
    for sample in pairs("crop_grounding", num_objects):
        (pair,) = sample.pairs
        (picture,) = sample.images
        named = pair.queries[0].text.removeprefix("Select the part of the picture that shows the ")
        words = set(re.split(r"[ .]+", named))
        if "object at the" in named or "object in the" in named:
            place = re.search(r"the (.+)\.", named)[1]
        else:
            (place,) = (it[3] for it in read_image(picture).objects if words & {it[1], it[2]})
        np.testing.assert_array_equal(pixels(pair.target.images[0]), enlarged(picture, place))


def enlarged(picture, place: str) -> np.ndarray:
    part = Image.fromarray(cell_at(picture, place).astype(np.uint8))
    return np.asarray(part.resize((84, 84), Image.Resampling.BICUBIC))


def test_titles_name_the_objects_of_their_picture():
    for kind in ("caption_to_captioned_image", "edit_to_captioned_image", "same_scene_to_captioned_image"):
        for sample in pairs(kind):
            (pair,) = sample.pairs
            titled = re.findall(r"an? (\w+) (\w+)", pair.target.text)
            assert sorted(titled) == sorted(it[1:3] for it in shown(pair.target).objects)


def test_every_direction_between_text_image_and_both_occurs():
    samples = draw(700, turn_share=0.2, pairs=ALL_PAIRS)
    by_task: dict = {}
    for sample in samples:
        for pair in sample.pairs:
            by_task.setdefault(pair.task, []).append((sample, pair))
    directions = {(query_form(rows), target_form(rows)) for rows in by_task.values()}
    assert directions == {(query, target) for query in ("t", "i", "it") for target in ("t", "i", "it")}


def query_form(rows: list) -> str:
    """An instruction that never changes tells nothing: it counts as no text."""
    says = len({pair.queries for _, pair in rows}) > 1
    return "i" * any(sample.images for sample, _ in rows) + "t" * says


def target_form(rows: list) -> str:
    return "i" * any(pair.target.images for _, pair in rows) + "t" * any(pair.target.text for _, pair in rows)


def test_single_pairs_have_paraphrases():
    for sample in draw(200, turn_share=0, pairs=ALL_PAIRS):
        (pair,) = sample.pairs
        assert len({query.text for query in pair.queries}) >= 3


# Hard negatives.


def said_or_shown(content) -> Facts:
    return shown(content) if content.images else read_rephrased(content.text)


def split_of(facts: Facts) -> str:
    objects = [
        SceneObject(shape, color, size, place, (0, 0, 0)) for size, color, shape, place in facts.objects
    ]
    return Scene(tuple(objects), "white", (0, 0, 0), 3, 0).split


@pytest.mark.parametrize("kind", [name for name in PAIR_TASKS if name != "crop_grounding"])
@pytest.mark.parametrize("num_negatives", [1, 4])
def test_hard_negatives_are_near_wrong_and_not_held_out(kind, num_negatives):
    only_objects = kind.startswith("same_scene")
    for sample in pairs(kind, num_negatives=num_negatives):
        (pair,) = sample.pairs
        right, wrong = said_or_shown(pair.target), [said_or_shown(it) for it in pair.negatives]
        assert len(wrong) == num_negatives
        keys = [it.objects if only_objects else it for it in (right, *wrong)]
        assert len(set(keys)) == len(keys)
        near = [right] + [read_image(image) for image in sample.images]
        for negative, facts in zip(pair.negatives, wrong, strict=True):
            assert bool(negative.text) == bool(pair.target.text)
            assert min(facts.num_differences(it) for it in near) <= 2
            assert split_of(facts) == "train"


@pytest.mark.parametrize("kind", ["edit_to_image", "edit_to_captioned_image"])
def test_the_first_hard_negative_of_an_edit_is_the_picture_before_it(kind):
    for sample in pairs(kind):
        (pair,) = sample.pairs
        (negative,) = pair.negatives
        assert negative.images == sample.images


def test_the_first_hard_negatives_of_a_crop_are_the_other_objects_of_the_picture():
    for sample in pairs("crop_grounding", 3, num_negatives=2):
        (pair,) = sample.pairs
        (picture,) = sample.images
        facts = read_image(picture)
        assert split_of(facts) == "train"
        parts = {enlarged(picture, place).tobytes() for *_, place in facts.objects}
        given = [pixels(it.images[0]).astype(np.uint8).tobytes() for it in (pair.target, *pair.negatives)]
        assert len(given) == 3
        assert set(given) == parts


def test_further_hard_negatives_of_a_crop_look_otherwise():
    for sample in pairs("crop_grounding", num_negatives=4):
        (pair,) = sample.pairs
        given = {pixels(it.images[0]).tobytes() for it in (pair.target, *pair.negatives)}
        assert len(given) == 5


def test_turns_have_no_hard_negatives_and_pairs_need_none():
    assert not any(pair.negatives for sample in turns(2) for pair in sample.pairs)
    assert not any(sample.pairs[0].negatives for sample in draw(20, turn_share=0, num_negatives=0))


# The order, the mixture and the split.


def test_it_is_the_registered_source():
    assert default_registry().component("source", "scenes") is Scenes


@given(start=st.integers(0, 40), seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_sample_i_does_not_depend_on_where_one_starts(start, seed):
    source = Scenes(Scenes.Config(num_samples=40, seed=seed, turn_share=0.5))
    later = list(islice(source.samples(start), 3))
    assert later == list(islice(source.samples(), start, start + 3))
    assert len(source) == 40


def test_more_samples_leave_the_first_ones_unchanged():
    assert draw(10) == draw(20)[:10]
    assert [sample.sample_id for sample in draw(2)] == ["000000000", "000000001"]


def test_seeds_differ():
    assert draw(5, seed=0) != draw(5, seed=1)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_turn_share_is_the_share_of_samples_with_turns(share):
    counts = [len(sample.pairs) for sample in draw(400, turn_share=share)]
    assert set(counts) <= {1, 7}
    assert counts.count(7) / 400 == pytest.approx(share, abs=0.08)
    assert share not in (0, 1) or len(set(counts)) == 1


def test_pairs_are_weighted():
    tasks = [
        sample.pairs[0].task
        for sample in draw(
            300, turn_share=0, pairs={"same_scene": 3, "crop_grounding": 1, "edit_to_image": 0}
        )
    ]
    assert set(tasks) == {"same_scene", "crop_grounding"}
    assert tasks.count("same_scene") == pytest.approx(225, abs=30)


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("num_objects", [1, 3])
def test_problems_show_their_own_split_only(split, num_objects):
    world = SceneWorld(num_objects=num_objects)
    for name, task in (TURN_TASKS | PAIR_TASKS).items():
        for index in range(30):
            problem = task.pose(world, seeded(name, index), split)
            assert problem.right.scene.split == split
            assert problem.picture is None or problem.picture.split == split


def splits(shape: str, color: str) -> list[str]:
    """The splits of all 18 arrangements of one object."""
    world = SceneWorld(shapes=[shape], colors=[color], num_objects=1, cells_per_side=3)
    scene = draw_scene(world, seeded(0), "train")
    sizes = [scene, *(change.apply(scene) for change in changes(scene, "size", world))]
    moved = [change.apply(it) for it in sizes for change in changes(it, "place", world)]
    return [it.split for it in sizes + moved]


def test_one_arrangement_in_eight_is_held_out():
    every = [split for shape in SHAPES for color in COLORS for split in splits(shape, color)]
    assert len(every) == 1800
    assert 0.11 < every.count("held_out") / 1800 < 0.14


def test_the_background_does_not_decide_the_split():
    for index in range(20):
        scene = draw_scene(SceneWorld(), seeded(index), "held_out")
        others = [change.apply(scene) for change in changes(scene, "background", SceneWorld())]
        assert {other.split for other in others} == {"held_out"}


def test_a_world_without_held_out_scenes_says_so():
    single = ((shape, color) for shape in SHAPES for color in COLORS)
    shape, color = next(names for names in single if "held_out" not in splits(*names))
    world = SceneWorld(shapes=[shape], colors=[color], num_objects=1, cells_per_side=3)
    with pytest.raises(MucoError, match=r"belongs to the held_out split.*Add shapes or colors"):
        draw_scene(world, seeded(0), "held_out")


@given(
    seed=st.integers(0, 2**32),
    grid=st.sampled_from([(2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 3), (3, 4), (3, 5), (3, 6)]),
)
@settings(max_examples=40, deadline=None)
def test_near_scenes_differ_a_little_and_stay_unambiguous(seed, grid):
    cells_per_side, num_objects = grid
    world = SceneWorld(num_objects=num_objects, cells_per_side=cells_per_side, **NAMES)
    rng = seeded(seed)
    scene = draw_scene(world, rng, "train")
    facts = read_caption(caption(scene))
    for near in near_scenes(scene, world, rng):
        for attribute in ("shape", "color", "place"):
            assert len({getattr(it, attribute) for it in near.objects}) == num_objects
        assert facts.num_differences(read_caption(caption(near))) <= 2


# Settings.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shapes": ["circle", "sqare"]}, "no shape 'sqare'. Did you mean 'square'? Known: circle, "),
        ({"colors": ["red", "teal"]}, "no color 'teal'. Known: red, orange"),
        ({"colors": ["red", "red"]}, "given twice: red"),
        ({"num_objects": 5}, "5 objects need as many places, and there are 4. Lower `num_objects` or set"),
        (
            {"num_objects": 6, "cells_per_side": 3},
            "6 objects need as many different shapes, and `shapes` has 5. Lower",
        ),
        (
            {"num_objects": 7, "cells_per_side": 3, "shapes": SHAPES},
            "7 objects need as many different colors, and `colors` has 6. Lower",
        ),
        ({"cells_per_side": 4}, "Input should be 2 or 3"),
        ({"num_negatives": -1}, "greater than or equal to 0"),
        ({"shapes": ["star"]}, "2 objects need as many different shapes, and `shapes` has 1"),
        ({"colors": ["red"]}, "2 objects need as many different colors, and `colors` has 1"),
        ({"num_objects": 10}, "less than or equal to 9"),
        ({"num_objects": 0}, "greater than or equal to 1"),
        ({"image_size_pixels": 8}, "greater than or equal to 32"),
        ({"turn_share": 1.5}, "less than or equal to 1"),
        ({"turn_share": -0.1}, "greater than or equal to 0"),
        ({"turn_share": float("nan")}, "finite"),
        ({"pairs": {"crop_grounding": -1}}, "greater than or equal to 0"),
        ({"pairs": {"edit_to_images": 1}}, "no kind of pair 'edit_to_images'. Did you mean 'edit_to_image'?"),
        ({"pairs": {}}, "no kind of pair has a weight above 0. Give one a weight"),
        ({"pairs": {"same_scene": 0}}, "no kind of pair has a weight above 0"),
    ],
)
def test_wrong_settings_are_explained(config, message):
    with pytest.raises(ValidationError) as caught:
        Scenes.Config(**config)
    assert message in str(caught.value)


def test_image_targets_are_needed_where_a_kind_has_them():
    assert Scenes.needs(Scenes.Config()) == {"image_targets"}
    assert not Scenes.needs(Scenes.Config(turn_share=1))
    assert not Scenes.needs(Scenes.Config(pairs={"caption_paraphrase": 1, "same_scene": 0}))


@pytest.mark.parametrize("length", ["none", "short", "full"])
def test_captions_describe_the_images_of_both_sides(length: str):
    weights = {"edit_to_image": 1, "crop_grounding": 1}
    options = {"turn_share": 0, "num_objects": 2, "pairs": weights, **NAMES, **LARGE}
    for sample, plain in zip(draw(8, captions=length, **options), draw(8, **options), strict=True):
        (pair,) = sample.pairs
        assert pair.queries == plain.pairs[0].queries
        assert pair.target.images == plain.pairs[0].target.images
        if length == "none":
            assert sample.caption == pair.target.caption == ""
            continue
        facts = read_image(sample.images[0])
        assert all(f"{color} {shape}" in sample.caption for _, color, shape, _ in facts.objects)
        assert length == "short" or read_caption(sample.caption) == facts
        assert (" background" in sample.caption) == (length == "full")
        assert (" background" in pair.target.caption) == (length == "full")
        assert pair.target.caption.count(" and ") == (pair.task == "edit_to_image")
