"""`retain serve`: an HTTP server for OpenAI's clients."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retain.cli.arguments import Usage, take_run


@dataclass(frozen=True)
class Serve:
    """Serve a run of text over HTTP, as OpenAI's /v1/completions with streaming, until Ctrl-C.

    A request may name a `session`, whose memory is kept for the next call. Sessions are saved at the end and restored
    at the next start.
    """

    port: int = 8000
    """The port to listen on. 0: any free port."""
    host: str = "127.0.0.1"
    """127.0.0.1: this machine alone. 0.0.0.0: all its networks. Anyone who reaches the port may use the server."""
    sessions: str | None = None
    """The folder of the sessions. None: sessions, in the run folder."""
    streams: int = 64
    """Texts that are sampled at once, as one batch."""
    queue: int = 256
    """Texts that may wait for a place in the batch. More are refused with status 503."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"


def serve_command(argv: list[str]) -> None:
    """Run `retain serve`."""
    path, args = take_run(argv, "serve", Serve)
    if not 0 <= args.port < 2**16:
        raise Usage(f"port: {args.port} must lie in 0 … {2**16 - 1}")
    if args.streams < 1:
        raise Usage(f"streams: {args.streams} must be at least 1")
    if args.queue < 0:
        raise Usage(f"queue: {args.queue} must not be negative")
    try:
        from retain.serve.server import address_of, open_socket, serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise Usage("serve: needs fastapi and uvicorn; run pip install 'retain[serve]'") from None
    from retain.runs.run import load_run, refuse_numbers

    run = load_run(path, device=args.device)
    refuse_numbers(run, "serve")
    listening = open_socket(args.host, args.port)
    if not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
        print(f"retain: host: {args.host} is open to other machines, and needs no password", file=sys.stderr)
    folder = path / "sessions" if args.sessions is None else Path(args.sessions)

    def say(sessions: int) -> None:
        taken_up = f", {sessions} session{'s' * (sessions > 1)} restored" if sessions else ""
        print(f"{path} at {address_of(listening)}{taken_up}; Ctrl-C ends it", flush=True)

    name = path.resolve().name
    saved = serve(run, listening, folder, name=name, streams=args.streams, queue=args.queue, ready=say)
    print(f"{saved} session{'s' * (saved != 1)} saved in {folder}" if saved else "no session to save")
