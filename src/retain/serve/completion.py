"""The answer to a request, whole or as events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from retain.serve.batch import Stream
from retain.serve.codec import Codec, tail_of
from retain.serve.refusal import Refusal
from retain.serve.request import CompletionRequest, make_streams
from retain.serve.sessions import Sessions
from retain.serve.worker import Job, Worker


class Completion:
    """The answer to one request, in OpenAI's form.

    The request's session is reserved until its stream has ended, and changes only then. If the call fails or the client
    disconnects, the session does not change.

    Args:
        asked: The request.
        prompts: Its prompts, as tokens.
        model: The name of the model.
        codec: Turns tokens into text.
        worker: Generates the texts.
        sessions: The server's sessions.

    Raises:
        Refusal: There is no room for the request, or its session is in use.
    """

    def __init__(
        self,
        asked: CompletionRequest,
        prompts: list[list[int]],
        model: str,
        codec: Codec,
        worker: Worker,
        sessions: Sessions,
    ):
        self.asked, self.prompts, self.codec, self.sessions = asked, prompts, codec, sessions
        self.head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        self.head["model"] = model
        self.session = None if asked.session is None else sessions.take(asked.session)
        try:
            self.job = Job(make_streams(asked, prompts, codec, self.session), self._ended, at_once=asked.stream)
            worker.submit(self.job)
        except BaseException:
            self._give_back()
            raise

    def close(self) -> None:
        """Release the places in the batch and the session, if they are still held."""
        self.job.cancel()
        self._give_back()

    async def whole(self) -> dict[str, Any]:
        """Wait for all texts, and return the answer. Raises Refusal."""
        said = [self._echo(number) for number in range(len(self.job.streams))]
        async for news in self.job.listen():
            for number, text, _ in news:
                said[number] += text
        choices = [self._choice(i, said[i], stream.finish) for i, stream in enumerate(self.job.streams)]
        return {**self.head, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """Yield the texts as they are generated, as server-sent events. An error is an event, too."""
        wants_usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage
        more = {"usage": None} if wants_usage else {}
        try:
            if self.asked.echo:
                for number in range(len(self.job.streams)):
                    yield _event({**self.head, "choices": [self._choice(number, self._echo(number), None)], **more})
            async for news in self.job.listen():
                for said in news:
                    yield _event({**self.head, "choices": [self._choice(*said)], **more})
            if wants_usage:
                yield _event({**self.head, "choices": [], "usage": self._usage()})
        except Refusal as refusal:
            yield _event(refusal.body)
        yield "data: [DONE]\n\n"

    def _ended(self, stream: Stream) -> None:
        if self.session is not None:
            self.session.memory, self.session.tail = stream.memory, tail_of(stream.reader)
            self._give_back()  # before the client gets the end, because it may call again at once

    def _give_back(self) -> None:
        if self.session is not None:
            self.sessions.give_back(str(self.asked.session))
            self.session = None

    def _echo(self, number: int) -> str:
        return self.codec.decode(self.prompts[number // self.asked.n]) if self.asked.echo else ""

    def _choice(self, number: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": None, "finish_reason": finish}

    def _usage(self) -> dict[str, int]:
        read, sampled = sum(map(len, self.prompts)), sum(stream.sampled for stream in self.job.streams)
        return {"prompt_tokens": read, "completion_tokens": sampled, "total_tokens": read + sampled}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


class Events(StreamingResponse):
    """Server-sent events of a completion, which is closed when they are sent or the client disconnects."""

    def __init__(self, completion: Completion):
        super().__init__(completion.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.completion.close()


async def unless_gone(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Return the result of `work`. Raises Refusal, which nobody receives, if the client disconnects before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refusal(499, "client: it has disconnected")
        return await working
    finally:
        working.cancel()
        watching.cancel()
