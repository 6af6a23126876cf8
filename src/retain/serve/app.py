"""The HTTP side: OpenAI's /v1/completions and /v1/models on FastAPI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retain.serve.codec import Codec
from retain.serve.completion import Completion, Events, unless_gone
from retain.serve.refusal import Refusal
from retain.serve.request import WANTED, CompletionRequest, explain_errors, list_prompts
from retain.serve.sessions import Sessions
from retain.serve.worker import Worker

BODY = 2**20
"""The most bytes that a request's body may have."""


class BodyLimit:
    """Middleware that refuses a body of more than BODY bytes. The rest is discarded, so the client gets the error."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        size = 0

        async def limited() -> Message:
            nonlocal size
            while True:
                part = await receive()
                size += len(part.get("body", b""))
                if size <= BODY or part["type"] != "http.request":
                    return part
                if not part.get("more_body"):
                    message = f"body: {size} bytes are more than {BODY}; send a long text in parts to one session"
                    raise HTTPException(413, message)

        await self.app(scope, limited, send)


def make_app(codec: Codec, worker: Worker, sessions: Sessions, name: str) -> FastAPI:
    """Return the application; `name` is the model's name for clients."""

    @asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(worker.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=working, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit)
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "retain"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{named:path}")
    async def one_model(named: str) -> dict[str, Any]:
        check_model(named)
        return model

    @app.delete("/v1/sessions/{named:path}")
    async def delete_session(named: str) -> dict[str, Any]:
        sessions.delete(named)
        return {"id": named, "object": "session", "deleted": True}

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Any:
        check_model(asked.model)
        # In a thread, because a tokenizer is slow on a long text and the other requests should not wait.
        prompts = await asyncio.to_thread(list_prompts, asked, codec)
        completion = Completion(asked, prompts, name, codec, worker, sessions)
        if asked.stream:
            return Events(completion)
        try:
            return JSONResponse(await unless_gone(request, completion.whole()))
        finally:
            completion.close()

    def check_model(named: str | None) -> None:
        if named not in (None, name):
            raise Refusal(404, f"model: {named!r} is not served here; use {name!r}", "model", "model_not_found")

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body, refusal.status, {"Retry-After": "1"} if refusal.status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> JSONResponse:
        return await refuse(request, explain_errors(error.errors()))

    @app.exception_handler(AnyHTTPException)
    async def refuse_request(request: Request, error: AnyHTTPException) -> JSONResponse:
        detail = error.detail
        if error.status_code == 400:  # JSON too deep, or with too long a number
            detail = f"body: {WANTED['']}"
        elif error.status_code in (404, 405):
            detail = f"path: {request.method} {request.url.path} is neither POST /v1/completions nor GET /v1/models"
        return await refuse(request, Refusal(error.status_code, detail))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return await refuse(request, Refusal(500, "server: internal error; the log has the traceback"))

    return app
