"""Writing to stdout and stderr, which may be a terminal, a pipe without a reader, a notebook's, or absent."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


def is_terminal(stream: Any) -> bool:
    """Whether the stream is a terminal. It may also be None, closed, or an object with few methods."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


class Lossy:
    """A stream whose reader may go away (`| head`, a terminal that is closed).

    Text written afterwards is lost without an error, and `unread` becomes true. With `of_messages` the text is not
    needed, so it is also lost without an error if the disk is full.
    """

    def __init__(self, stream: Any, *, of_messages: bool = False) -> None:
        self.stream, self.of_messages = stream, of_messages
        self.unread = False

    def write(self, text: str) -> int:
        """Write the text, or lose it."""
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush the text that was not lost."""
        if hasattr(self.stream, "flush"):
            self._attempt("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _attempt(self, method: str, *arguments: str) -> None:
        try:
            getattr(self.stream, method)(*arguments)
        except OSError as error:
            # A closed terminal gives the same EIO as a broken disk.
            gone = isinstance(error, ConnectionError) or (error.errno == errno.EIO and _is_device(self.stream))
            if not gone and not self.of_messages:
                raise
            self.unread = True
            divert(self.stream)


def _is_device(stream: Any) -> bool:
    return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)


def divert(stream: Any) -> None:
    """Discard buffered text, or Python reports an error at exit (its documentation gives this remedy)."""
    with suppress(AttributeError, OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextmanager
def lossy_streams() -> Iterator[None]:
    """Make stdout and stderr exist and be Lossy. A character that their encoding lacks becomes a question mark."""
    before = sys.stdout, sys.stderr
    # If a standard file was closed at the start, the next opened file would get its descriptor and the printed text.
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
