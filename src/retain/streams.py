"""Writing to stdout and stderr, be they a terminal, a pipe that nobody reads any more, a notebook's, or none."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


def is_terminal(stream: Any) -> bool:
    """Whether someone watches the stream; it may be None, closed, or an object with hardly any method."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


class Lossy:
    """A stream whose reader may go away (`| head`, a terminal that is closed).

    What is written then is lost, and nothing stops for it; `unread` tells whether that has happened. With `of_messages`
    nobody waits for the text, and it is also lost if the disk is full.
    """

    def __init__(self, stream: Any, *, of_messages: bool = False) -> None:
        self.stream, self.of_messages = stream, of_messages
        self.unread = False

    def write(self, text: str) -> int:
        """Write, or lose, the text."""
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush what was not lost."""
        if hasattr(self.stream, "flush"):
            self._attempt("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _attempt(self, method: str, *arguments: str) -> None:
        try:
            getattr(self.stream, method)(*arguments)
        except OSError as error:
            # A terminal that is gone has errors of input and output, as a broken disk has.
            gone = isinstance(error, ConnectionError) or (error.errno == errno.EIO and _is_device(self.stream))
            if not gone and not self.of_messages:
                raise
            self.unread = True
            divert(self.stream)


def _is_device(stream: Any) -> bool:
    return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)


def divert(stream: Any) -> None:
    """Send what is still buffered nowhere: else Python complains at exit (its documentation gives this remedy)."""
    with suppress(AttributeError, OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextmanager
def lossy_streams() -> Iterator[None]:
    """Inside, stdout and stderr exist and are Lossy. A character that their encoding lacks becomes a question mark."""
    before = sys.stdout, sys.stderr
    # A standard file that was closed at the start would be the next one that is opened, and be printed into.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out, messages = (nowhere if stream is None or getattr(stream, "closed", False) else stream for stream in before)
        for stream in (out, messages):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        sys.stdout, sys.stderr = Lossy(out), Lossy(messages, of_messages=True)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
