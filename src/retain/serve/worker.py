"""The worker that steps all streams, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from retain.model.rnn import RNN
from retain.serve.batch import Batch, News, Stream
from retain.serve.refusal import Refusal

log = logging.getLogger("retain")


class Job:
    """The streams of one request, and their text that was not delivered yet.

    Args:
        streams: The request's streams.
        ended: Called for each stream that ends, before `listen` yields its end.
        at_once: Whether `listen` yields each piece of text at once, or all when the last stream has ended.
    """

    def __init__(self, streams: Sequence[Stream], ended: Callable[[Stream], None], at_once: bool):
        self.streams, self._ended, self._at_once = streams, ended, at_once
        self._said = dict.fromkeys(streams, "")
        self._left = set(streams)
        self._changed = asyncio.Event()
        self.refusal: Refusal | None = None

    def hear(self, news: News) -> None:
        """Take the result of a step for one of the streams."""
        self._said[news.stream] += news.text
        if news.ended:
            self._left.discard(news.stream)
            if news.stream.finish == "error":
                after = f"after {news.stream.sampled} tokens of its own"
                self.fail(Refusal(500, f"run: the RNN's logits are not finite {after}; try another prompt"))
            else:
                self._ended(news.stream)
        if self._at_once or not self._left:
            self._changed.set()

    def fail(self, refusal: Refusal) -> None:
        """End all streams with an error."""
        self.refusal = self.refusal or refusal
        self.cancel()
        self._changed.set()

    def cancel(self) -> None:
        """Have all streams removed from the batch and the queue before the next step."""
        for stream in self._left:
            stream.cancelled = True

    async def listen(self) -> AsyncIterator[list[tuple[int, str, str | None]]]:
        """Yield lists of new texts: the number of a stream, its text, and why it ended or None.

        Raises Refusal if the streams end with an error.
        """
        open_streams = list(enumerate(self.streams))
        while open_streams:
            await self._changed.wait()
            self._changed.clear()
            if self.refusal:
                raise self.refusal
            new = []
            for number, stream in open_streams:
                finish = None if stream in self._left else stream.finish
                if self._said[stream] or finish:
                    new.append((number, self._said[stream], finish))
                    self._said[stream] = ""
            open_streams = [(number, stream) for number, stream in open_streams if stream in self._left]
            if new:
                yield new


class Worker:
    """The loop that steps up to `size` streams together; `queue` more may wait for a place.

    A step runs in a thread, and uses only the batch, which the event loop does not touch meanwhile. So no lock is
    needed, and requests are read and answered while the RNN computes.
    """

    def __init__(self, rnn: RNN, size: int, queue: int):
        self.batch, self.size, self.capacity = Batch(rnn), size, size + queue
        self.waiting: deque[Stream] = deque()
        self.jobs: dict[Stream, Job] = {}
        self._work = asyncio.Event()
        self._ending = False

    def submit(self, job: Job) -> None:
        """Queue the streams of a request. Raises Refusal if there is no room for them."""
        streams = job.streams
        if self._ending:
            raise Refusal(503, "server: it is shutting down; try again later", code="ending")
        if len(streams) > self.capacity:
            message = f"n: {len(streams)} texts are more than can run and wait, {self.capacity}; request fewer"
            raise Refusal(400, message, "n")
        if len(self.jobs) + len(streams) > self.capacity:
            raise Refusal(
                503, f"queue: {len(self.jobs)} texts run and wait already; try again later", code="queue_full"
            )
        self.jobs |= dict.fromkeys(streams, job)
        self.waiting.extend(streams)
        self._work.set()

    def end(self) -> None:
        """Refuse new requests, and end the unfinished ones with an error."""
        self._ending = True
        for job in list(self.jobs.values()):
            job.fail(Refusal(503, "server: it is shutting down; try again later", code="ending"))

    async def run(self) -> None:
        """Step until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "step") as thread:
            while True:
                try:
                    self._change_places()
                    if not self.batch.streams:
                        self._work.clear()
                        await self._work.wait()
                        continue
                    for news in await loop.run_in_executor(thread, self.batch.step):
                        self._tell(news)
                except Exception:
                    log.exception("serve: a step failed; the texts in progress end with an error")
                    self._fail_all()

    def _change_places(self) -> None:
        if gone := [stream for stream in self.jobs if stream.cancelled]:
            for stream in gone:
                del self.jobs[stream]
            self.batch.drop(lambda stream: stream.cancelled)
            self.waiting = deque(stream for stream in self.waiting if not stream.cancelled)
        free = self.size - len(self.batch.streams)
        if new := [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]:
            self.batch.add(new)

    def _tell(self, news: News) -> None:
        job = self.jobs.get(news.stream)
        if news.ended:
            self.jobs.pop(news.stream, None)
        if job is not None and not news.stream.cancelled:
            job.hear(news)

    def _fail_all(self) -> None:
        for stream in self.jobs.keys() - self.waiting:
            self.jobs.pop(stream).fail(Refusal(500, "server: a step failed; its log says why"))
        self.batch = Batch(self.batch.rnn)
