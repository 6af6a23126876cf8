"""Batches prepared off the critical path: while one step is trained, a thread prepares the next step's batch."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from retain.data.batches import Batch, Data


class Prefetch:
    """The batches of `data` for one seed and rank. Taking a batch begins the next one; `begin` begins the first.

    A batch is still a function of (seed, number, rank, size): a prepared batch that is not taken is thrown away. `pin`
    puts batches into page-locked memory, from which a GPU copies while the host continues. An error of `data` is raised
    when its batch is taken. `waited` is the seconds spent in `take` so far.
    """

    def __init__(self, data: Data, seed: int, rank: int, *, pin: bool = False) -> None:
        self.data, self.seed, self.rank, self.pin = data, seed, rank, pin
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[tuple[int, int], Future[Batch]] | None = None

    def take(self, number: int, size: int) -> Batch:
        """Return batch `number` of `size` sequences, and begin the next one."""
        start = time.perf_counter()
        batch = self.begin(number, size).result()
        self.waited += time.perf_counter() - start
        self.begin(number + 1, size)
        return batch

    def begin(self, number: int, size: int) -> Future[Batch]:
        """Start preparing this batch in the background, unless that has begun."""
        if self._next is None or self._next[0] != (number, size):
            if self._next is not None:
                self._next[1].cancel()
            self._next = (number, size), self._thread.submit(self._make, number, size)
        return self._next[1]

    def close(self) -> None:
        """Wait for the thread to end, and throw its batch away."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, number: int, size: int) -> Batch:
        batch = self.data.batch(self.seed, number, self.rank, size)
        return {name: values.pin_memory() for name, values in batch.items()} if self.pin else batch
