"""Digits: every image in one split, pixel by pixel."""

import sys

import pytest
import torch

from retain.config import data_config
from retain.data import SPLITS, load_data


def test_digits_are_all_there_once_in_raster_order():
    from sklearn.datasets import load_digits

    data = load_data(data_config(name="digits", seq_len=63))
    assert (data.vocab_size, data.kind, data.image_shape, data.answers) == (17, "image", (8, 8), False)
    assert data.info["sequences"] == {"train": 1617, "validation": 90, "test": 90} and data.info["levels"] == 17
    images = torch.from_numpy(load_digits().images).long().flatten(1)
    for split in SPLITS:
        targets = torch.cat([b["targets"] for b in data.windows(split, 100)])
        assert torch.equal(targets, images[torch.from_numpy(data.index[split])])
    assert sorted(i for s in SPLITS for i in data.index[s].tolist()) == list(range(1797))


def test_digits_split_is_pinned():
    data = load_data(data_config(name="digits", seq_len=63))
    assert data.index["validation"][:6].tolist() == [6, 18, 50, 74, 83, 84]


@pytest.mark.parametrize("seq_len", [62, 64])
def test_digits_have_one_length(seq_len):
    with pytest.raises(ValueError, match=f"^data.seq_len: {seq_len} does not fit images of 64 pixels; set it to 63$"):
        load_data(data_config(name="digits", seq_len=seq_len))


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match="^data.name: digits needs scikit-learn; run pip install scikit-learn$"):
        load_data(data_config(name="digits", seq_len=63))
