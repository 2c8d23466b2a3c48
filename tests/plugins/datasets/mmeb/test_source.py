"""MMEB-train in its layout, from zip files that nobody unpacked."""

from __future__ import annotations

import pytest

from muco.core import DataError, MucoError
from muco.plugins.datasets.mmeb.source import MMEB
from tests.helpers.outside_data import (
    IMG,
    captioned_rows,
    image_bytes,
    mmeb_rows,
    write_files,
    write_mmeb,
    write_parquet,
    write_zip,
)


@pytest.fixture
def folder(tmp_path):
    write_mmeb(tmp_path / "MMEB-train")
    return tmp_path / "MMEB-train"


def source(folder, **settings) -> MMEB:
    return MMEB(MMEB.Config(path=str(folder), **settings))


def only(folder, row, subset="CIRR", **settings):
    """Return the sample of one row."""
    write_parquet(folder / subset / "original-00000-of-00001.parquet", [row])
    (sample,) = source(folder, subsets=(subset,), **settings).samples()
    return sample


def test_every_row_of_every_data_set_is_a_sample_in_order(folder):
    samples = list(source(folder).samples())
    assert len(samples) == len(source(folder)) == 5 * 6
    assert [sample.dataset for sample in samples[::6]] == [
        "mmeb/CIRR", "mmeb/DocVQA", "mmeb/ImageNet_1K", "mmeb/MSCOCO_t2i", "mmeb/WebQA",
    ]  # fmt: skip
    assert all(len(sample.pairs) == 1 for sample in samples)
    assert len({sample.sample_id for sample in samples}) == 30


def test_the_token_goes_and_the_words_stay_as_they_are(folder):
    samples = {sample.dataset: sample for sample in source(folder, limit=1).samples()}
    page = samples["mmeb/DocVQA"]
    query_text = "Represent the given image with the following question: what is 0?"
    assert page.pairs[0].queries[0].text == query_text
    assert page.pairs[0].target.text == "10.0 ", "trailing spaces belong to the answer"
    assert len(page.images) == 1
    found = samples["mmeb/MSCOCO_t2i"]
    assert found.images == ()
    assert found.pairs[0].target.text == "Represent the given image."
    assert len(found.pairs[0].target.images) == 1


def test_images_are_the_archives_bytes(folder):
    (first, second, third, *_) = source(folder, subsets=("DocVQA",)).samples()
    assert first.images == second.images != third.images
    assert first.images[0].data == image_bytes(100)


def test_queries_of_webqa_carry_the_token_without_an_image(folder):
    sample = next(source(folder, subsets=("WebQA",)).samples())
    assert sample.images == ()
    assert sample.pairs[0].queries[0].text.startswith("\nFind a Wikipedia image")


def test_diverse_instructions_have_the_token_anywhere(folder):
    row = mmeb_rows("CIRR", 1)[0] | {"qry": f"Of the image {IMG} find one that differs: red"}
    write_parquet(folder / "CIRR" / "diverse_instruction-00000-of-00001.parquet", [row])
    (sample,) = source(folder, split="diverse_instruction").samples()
    assert sample.pairs[0].queries[0].text == "Of the image find one that differs: red"
    assert len(sample.images) == 1


@pytest.mark.parametrize("kind", ["text", "list", "image list shorter"])
def test_hard_negatives_are_lists_or_lists_written_as_text(folder, kind):
    rows = captioned_rows()
    if kind != "text":
        for row in rows:
            row["neg_text"] = ["wrong", f"{IMG}\nRepresent the given image.\n", "a third"]
            row["neg_image_path"] = ["", "images/CIRR/Train/target_1.jpg"]
    write_parquet(folder / "MMEB_train" / "CIRR" / "cirr_generated_sentence.parquet", rows)
    made = source(folder, split="captioned")
    assert len(made) == 6
    sample = next(made.samples())
    wrong = sample.pairs[0].negatives
    assert len(wrong) == 3
    assert {content.text for content in wrong} >= {"Represent the given image.", "a third"}
    # The image list is shorter: its last one serves from there on.
    assert sorted(len(content.images) for content in wrong) == [0, 1, 1]
    assert sample.caption == "the query's picture 0"
    assert sample.pairs[0].target.caption == "the target's picture 0"


def test_one_hard_negative_of_many_is_drawn_the_same_each_time(folder):
    write_parquet(folder / "MMEB_train" / "CIRR" / "cirr_generated_sentence.parquet", captioned_rows(40))
    write_zip(
        folder / "images_zip" / "CIRR.zip",
        {
            f"CIRR/Train/{kind}_{each}.jpg": image_bytes(each)
            for each in range(40)
            for kind in ("image", "target")
        },
    )
    draws = [
        sample.pairs[0].negatives for sample in source(folder, split="captioned", max_negatives=1).samples()
    ]
    assert draws == [
        sample.pairs[0].negatives for sample in source(folder, split="captioned", max_negatives=1).samples()
    ]
    assert {len(wrong) for wrong in draws} == {1}
    assert len({wrong[0].text.split()[0] for wrong in draws}) == 3, "all three positions are drawn"


def test_a_negative_of_an_image_alone_counts_and_an_empty_one_does_not(folder):
    row = mmeb_rows("DocVQA", 1)[0]
    image = "images/DocVQA/Train/image_0.jpg"
    assert only(folder, row, "DocVQA").pairs[0].negatives == ()
    (wrong,) = only(folder, row | {"neg_image_path": image}, "DocVQA").pairs[0].negatives
    assert (wrong.text, len(wrong.images)) == ("", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_text": "", "pos_image_path": ""}, "no positive"),
        ({"qry": "", "qry_image_path": ""}, "the query has neither text nor image"),
        ({"qry_image_path": ""}, r"the query's text holds <\|image_1\|> but no image is named"),
        ({"pos_image_path": ""}, "the target's text holds"),
        ({"qry_image_path": "images/CIRR/Train/gone.jpg"}, "image images/CIRR/Train/gone.jpg is missing"),
        ({"qry_image_path": "../../etc/passwd"}, "would lie outside its folder"),
        ({"qry_image_path": "/etc/passwd"}, "would lie outside its folder"),
        ({"neg_text": "['', __import__('os').system('touch /tmp/owned')]"}, "neg_text is no list that can"),
        ({"neg_text": "[[1], 2]"}, "neg_text is a list, not text"),
        ({"neg_text": "['a'"}, "neg_text is no list that can be parsed"),
        ({"neg_text": f"{IMG}\nwrong"}, "the hard negative's text holds"),
        ({"qry": True}, "qry is a bool, not text"),
    ],
)
def test_a_row_that_makes_no_sample_is_reported(folder, change, message):
    with pytest.raises(DataError, match=message):
        only(folder, mmeb_rows("CIRR", 1)[0] | change)


def test_images_may_be_unpacked_or_zipped_under_another_head(tmp_path):
    for number, prefix in enumerate(("images/CIRR/Train", "CIRR/Train", "Train", "data/images/CIRR/Train")):
        folder = tmp_path / str(number)
        rows = mmeb_rows("CIRR", 1)
        write_parquet(folder / "CIRR" / "original-00000-of-00001.parquet", rows)
        files = {f"{prefix}/image_0.jpg": image_bytes(1), f"{prefix}/target_0.jpg": image_bytes(2)}
        write_zip(folder / "images_zip" / "CIRR.zip", files, deflated=True)
        # The same name in another archive is another image.
        write_zip(folder / "images_zip" / "A.zip", {"Train/image_0.jpg": image_bytes(3)})
        (sample,) = source(folder, subsets=("CIRR",)).samples()
        assert sample.images[0].data == image_bytes(1)
        assert sample.pairs[0].target.images[0].data == image_bytes(2)
    write_files(tmp_path / "0", {"images/CIRR/Train/image_0.jpg": image_bytes(9)})
    (sample,) = source(tmp_path / "0", subsets=("CIRR",)).samples()
    assert sample.images[0].data == image_bytes(9), "a plain file comes first"


@pytest.mark.parametrize("harm", ["cut", "flipped", "no zip"])
def test_a_broken_archive_is_reported(folder, harm):
    path = folder / "images_zip" / "CIRR.zip"
    data = bytearray(path.read_bytes())
    if harm == "cut":
        del data[len(data) // 2 :]
    elif harm == "flipped":
        data[200] ^= 1
    else:
        data[:] = b"<html>"
    path.write_bytes(data)
    message = "no zip archive" if harm != "flipped" else "does not have the listed size and check sum"
    with pytest.raises(MucoError, match=message):
        list(source(folder, subsets=("CIRR",)).samples())


def test_what_is_not_there_is_reported_with_how_to_get_it(tmp_path, folder):
    with pytest.raises(DataError, match=r"does not exist\. Fetch it with `hf download"):
        len(source(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no data set 'CIR' in split original\. Did you mean 'CIRR'"):
        len(source(folder, subsets=("CIR",)))
    with pytest.raises(DataError, match=r"the tables of split captioned\. Fetch"):
        len(source(folder, split="captioned"))
