"""The server process: its socket, its signals, and its sessions' folder."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from retain.errors import UserError
from retain.runs.progress import stop_signals
from retain.runs.run import Run
from retain.serve.app import make_app
from retain.serve.codec import Codec
from retain.serve.sessions import kept_in
from retain.serve.worker import Worker

GRACE = 5.0
"""Seconds that texts have to finish when the server stops."""


def serve(
    run: Run,
    listening: socket.socket,
    folder: Path,
    *,
    name: str,
    streams: int = 64,
    queue: int = 256,
    ready: Callable[[int], None] = lambda sessions: None,
    stop: threading.Event | None = None,
) -> int:
    """Serve a run until Ctrl-C, SIGTERM or `stop`, and return the number of saved sessions.

    Args:
        run: A run of text.
        listening: The socket that clients connect to; see `open_socket`. It is closed at the end.
        folder: Sessions are loaded from here, and saved here at the end, also after an error.
        name: The model's name for clients.
        streams: The most texts that step together.
        queue: The most texts that wait beside them. More are refused.
        ready: Called with the number of loaded sessions, before the first request.
        stop: An event that stops the server, as signals do.

    Raises:
        UserError: The run is not of text, or the folder cannot be used.
        CheckpointError: The folder's sessions are damaged, or cannot be written.
    """
    with listening:
        codec = Codec(run)
        with kept_in(folder, run.rnn) as sessions, stop_signals() as asked:
            worker = Worker(run.rnn, streams, queue)
            app = make_app(codec, worker, sessions, name)
            # Without uvicorn's logger, which would log every request and configure logging for the whole process.
            config = uvicorn.Config(
                app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=int(GRACE) + 5
            )
            ready(len(sessions.kept))
            server = _Server(config, worker, lambda: asked.is_set() or (stop is not None and stop.is_set()))
            asyncio.run(server.serve(sockets=[listening]))
    return len(sessions.kept)


class _Server(uvicorn.Server):
    """A uvicorn server that stops when `stopped` returns True, and ends texts that take longer than GRACE."""

    def __init__(self, config: uvicorn.Config, worker: Worker, stopped: Callable[[], bool]):
        super().__init__(config)
        self.worker, self.stopped = worker, stopped

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `stop_signals`, because uvicorn would raise them again at its end."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop."""
        return self.stopped() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give texts GRACE seconds to finish, and shut down."""
        asyncio.get_running_loop().call_later(GRACE, self.worker.end)
        await super().shutdown(sockets)


def open_socket(host: str, port: int) -> socket.socket:
    """Listen at a host and port, where port 0 means any free port. Raises UserError if that fails."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
    except socket.gaierror as error:
        raise UserError(f"host: {host!r} is not known here ({error.strerror}); use 127.0.0.1") from None
    except OSError as error:
        remedies: dict[int | None, str] = {
            errno.EADDRINUSE: f"port: {port} is in use; end what listens there, or give another --port",
            errno.EACCES: f"port: {port} may not be opened by this user; give one above 1023",
            errno.EADDRNOTAVAIL: f"host: {host!r} is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all",
        }
        why = f"port: {port} at {host!r} cannot be opened, {error.strerror}; give another --port"
        raise UserError(remedies.get(error.errno, why)) from None
    # Connections inherit this option. Without it, an answer's body waits 40 ms until the client acknowledges the head.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def address_of(listening: socket.socket) -> str:
    """Return the base URL for clients."""
    host, port, *_ = listening.getsockname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
