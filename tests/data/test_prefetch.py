"""Batches prepared ahead are those of the data, in any order; its errors come through."""

import threading
import time

import pytest
import torch

from retain.config import DataConfig
from retain.data import load_data
from retain.data.prefetch import Prefetch


class Slow:
    """Counts what is asked for; with `gate`, a batch is ready only when that is set."""

    def __init__(self):
        self.asked, self.gate = [], None

    def batch(self, seed, step, rank, size):
        if self.gate is not None:
            assert self.gate.wait(10)
        self.asked.append((step, size, threading.current_thread().name))
        if step == 5:
            raise ValueError("data: no batch 5")
        return {"tokens": torch.tensor([seed, step, rank, size])}


@pytest.fixture
def slow():
    return Slow()


def test_batches_are_the_datas_in_any_order():
    data = load_data(DataConfig(name="retrieval", seq_len=8, symbols=4))
    batches = Prefetch(data, 3, 1)
    for step, size in [(0, 4), (1, 4), (2, 2), (7, 2), (0, 4)]:
        for name, values in data.batch(3, step, 1, size).items():
            assert torch.equal(batches.take(step, size)[name], values)
    batches.close()


def test_the_next_is_prepared_before_it_is_asked_for(slow):
    batches = Prefetch(slow, 0, 0)
    batches.take(0, 4)
    deadline = time.monotonic() + 60
    while len(slow.asked) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    batches.close()
    assert [(step, size) for step, size, _ in slow.asked] == [(0, 4), (1, 4)]
    assert all(name.startswith("batches") for _, _, name in slow.asked)


def test_the_first_is_prepared_while_other_things_are_done(slow):
    """Compiling, an optimizer: no step waits for it."""
    batches = Prefetch(slow, 0, 0)
    batches.begin(3, 4).result()
    assert slow.asked[0][:2] == (3, 4)
    assert torch.equal(batches.take(3, 4)["tokens"], torch.tensor([0, 3, 0, 4]))
    batches.close()
    assert [asked[:2] for asked in slow.asked].count((3, 4)) == 1


def test_only_waiting_counts(slow):
    slow.gate = threading.Event()
    batches = Prefetch(slow, 0, 0)
    threading.Timer(0.2, slow.gate.set).start()
    batches.take(0, 4)
    assert 0.15 < batches.waited < 5
    waited = batches.waited
    batches._next[1].result()
    batches.take(1, 4)
    assert batches.waited - waited < 0.1
    batches.close()


def test_errors_come_through_where_the_batch_is_taken(slow):
    batches = Prefetch(slow, 0, 0)
    batches.take(4, 1)
    with pytest.raises(ValueError, match="no batch 5"):
        batches.take(5, 1)
    batches.close()
