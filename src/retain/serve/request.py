"""The fields of a request, and the streams that are made from them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from retain.config import SEEDS
from retain.errors import UserError
from retain.inference.text import Text
from retain.serve.batch import Stream
from retain.serve.codec import Codec
from retain.serve.refusal import Refusal
from retain.serve.sampling import Sampling
from retain.serve.sessions import Session

NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "suffix": "",
}
"""Values of OpenAI's other fields that have no effect."""
LONGEST = 2**16
"""The most tokens that one call samples. A session can continue from there."""


Word = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False


class CompletionRequest(BaseModel):
    """The fields of OpenAI's /v1/completions that this server reads, and `session`. A null field counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    max_tokens: Annotated[int, Field(ge=0, le=LONGEST)] = 16
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    stop: Word | Annotated[list[Word], Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    echo: bool = False
    session: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @model_validator(mode="before")
    @classmethod
    def leave_out_what_asks_for_nothing(cls, values: Any) -> Any:
        """Remove null and NEUTRAL values."""
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if v is not None and not (k in NEUTRAL and v == NEUTRAL[k])}


WANTED = {
    "": "send one JSON object, with Content-Type: application/json",
    "prompt": "send a text, a list of texts, or tokens as a list of numbers or of such lists",
    "stop": "send one to four strings of 1 to 256 characters",
}
"""Messages for the fields that pydantic describes at length."""


def explain_errors(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """Return the first of pydantic's errors as one line about the field that is wrong."""
    error = errors[0]
    where = [str(part) for part in error["loc"][1:]]
    if error["type"] == "json_invalid":
        return Refusal(400, f"body: is not JSON at character {where[0]}, {error['ctx']['error']}; send one JSON object")
    field = where[0] if where else ""
    if error["type"] == "extra_forbidden":
        return Refusal(400, f"{'.'.join(where)}: this server does not support it; leave it out", field)
    message = WANTED.get(field) or f"{error['input']!r:.60} is wrong, {error['msg'][0].lower()}{error['msg'][1:]}"
    return Refusal(400, f"{field or 'body'}: {message}", field or None)


def list_prompts(request: CompletionRequest, codec: Codec) -> list[list[int]]:
    """Return the tokens of every prompt. Raises Refusal for a prompt that the run has no tokens for."""
    given: Any = request.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise Refusal(400, 'prompt: the list is empty; send at least one prompt, which may be ""', "prompt")
    try:
        return [codec.encode(prompt) if isinstance(prompt, str) else codec.check(prompt) for prompt in given]
    except UserError as error:
        raise Refusal(400, str(error), "prompt") from None


def make_streams(
    request: CompletionRequest, prompts: list[list[int]], codec: Codec, session: Session | None
) -> list[Stream]:
    """Return the streams of a request: n for every prompt, where the i-th of all is sampled with seed + i.

    Raises Refusal if a request with a session has more than one stream.
    """
    if session is not None and len(prompts) * request.n > 1:
        raise Refusal(400, "session: it is one stream; send one prompt, and n = 1", "session")
    seed = random.randrange(SEEDS) if request.seed is None else request.seed
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    streams: list[Stream] = []
    for prompt in prompts:
        for _ in range(request.n):
            reader = codec.reader(prompt, session.tail if session else None)
            generator = torch.Generator().manual_seed(seed + len(streams))
            streams.append(
                Stream(
                    tokens=prompt,
                    length=request.max_tokens,
                    sampling=Sampling(request.temperature, request.top_p, generator),
                    reader=reader,
                    text=Text(reader.read, reader.rest, stop, codec.end),
                    memory=session.memory if session else None,
                    kept=session is not None,
                )
            )
    return streams
