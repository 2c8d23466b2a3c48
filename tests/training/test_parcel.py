from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from muco.training.parcel import Parcel, Parcels

CONTENT = {
    "ids": torch.arange(5),
    "pixels": torch.arange(12, dtype=torch.uint8).view(3, 4).T,
    "mask": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
    "one": torch.tensor(2.5),
    "half": torch.ones(2, dtype=torch.bfloat16),
}


class Items(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return CONTENT | {"index": torch.tensor(index)}


def test_a_parcel_holds_what_was_put_in_with_one_tensor():
    parcel = Parcel.of(CONTENT)
    assert [type(each) for each in vars(parcel).values()] == [bytes, torch.Tensor, tuple]
    torch.testing.assert_close(parcel.open(), CONTENT, rtol=0, atol=0)


def test_parcels_of_a_data_worker_can_be_changed_and_do_not_share_memory():
    loader = DataLoader(Parcels(Items()), sampler=range(3), batch_size=None, num_workers=1)
    opened = [parcel.open() for parcel in loader]
    opened[0]["ids"] += 1
    for index, content in enumerate(opened):
        expected = CONTENT | {"index": torch.tensor(index), "ids": CONTENT["ids"] + (index == 0)}
        torch.testing.assert_close(content, expected, rtol=0, atol=0)
