"""Batches prepared ahead are those of the data, in any order; its errors come through."""

import threading

import pytest
import torch

from retain.config import data_config
from retain.data import load_data
from retain.data.prefetch import Prefetch
from runs import wait_for


class Slow:
    """Counts what is asked for, and seconds, one a batch; a batch is ready only while `gate` is open."""

    def __init__(self):
        self.asked, self.seconds, self.gate = [], 0, threading.Event()
        self.gate.set()

    def batch(self, seed, step, rank, size):
        self.gate.wait()
        self.seconds += 1
        self.asked.append((step, size, threading.current_thread().name))
        if step == 5:
            raise ValueError("data: no batch 5")
        return {"tokens": torch.tensor([seed, step, rank, size])}


@pytest.fixture
def slow():
    return Slow()


def test_batches_are_the_datas_in_any_order():
    data = load_data(data_config(name="retrieval", seq_len=8, symbols=4))
    batches = Prefetch(data, 3, 1)
    for step, size in [(0, 4), (1, 4), (2, 2), (7, 2), (0, 4)]:
        for name, values in data.batch(3, step, 1, size).items():
            assert torch.equal(batches.take(step, size)[name], values)
    batches.close()


def test_the_next_is_prepared_before_it_is_asked_for(slow):
    batches = Prefetch(slow, 0, 0)
    batches.take(0, 4)
    wait_for(lambda: len(slow.asked) == 2)
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


def test_only_waiting_counts(slow, monkeypatch):
    def clock():
        now = slow.seconds
        slow.gate.set()  # not before it has been looked at
        return now

    monkeypatch.setattr("retain.data.prefetch.time.perf_counter", clock)
    batches = Prefetch(slow, 0, 0)
    slow.gate.clear()
    batches.take(0, 4)
    assert batches.waited == 1, "one second of its clock a batch"
    batches._next[1].result()
    batches.take(1, 4)
    assert batches.waited == 1
    batches.close()


def test_errors_come_through_where_the_batch_is_taken(slow):
    batches = Prefetch(slow, 0, 0)
    batches.take(4, 1)
    with pytest.raises(ValueError, match="no batch 5"):
        batches.take(5, 1)
    batches.close()
