"""The command line: retain train, eval, generate, forecast, score, export, serve, label, info, tasks, and so on.

Heavy imports wait until a command needs them, so that --help is fast.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator
from types import FrameType

from retain import __version__
from retain.cli.arguments import Usage
from retain.config.presets import PRESETS
from retain.errors import explain
from retain.streams import divert, lossy_streams

HELP = f"""\
usage: retain COMMAND ...

Pretrain recurrent networks without backpropagation through time (retain {__version__}).

commands:
  train PRESET     pretrain an RNN by one of the presets below
  eval RUN         score the RNN alone on a whole split, next to its teacher
  generate RUN     sample from the RNN, streaming
  forecast RUN     forecast series of numbers, as quantiles
  score RUN        print how surprising each step of a series is
  export RUN DIR   write the RNN for transformers, onnxruntime or a browser
  serve RUN        serve the RNN over HTTP, for OpenAI's clients
  label DATA       make a language model's labels once, for any number of runs
  info RUN         show what a run folder holds
  tasks            list the memory tasks, with a sample of each
  compare PRESET   compare SMT with BPTT, GRU and LSTM at equal budgets
  sweep PRESET     vary settings, and find the smallest memory that reaches a loss
  report RUN ...   write an HTML page about a run, or several side by side
  plot RUN NAME    draw one plot of a run as a picture

presets:
{textwrap.fill(", ".join(PRESETS), 78, initial_indent="  ", subsequent_indent="  ")}

'retain COMMAND --help' lists a command's options.
"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exits 0, 2 for a user's mistake, 1 for a failed run, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    commands = [
        "train",
        "eval",
        "generate",
        "forecast",
        "score",
        "export",
        "serve",
        "label",
        "info",
        "tasks",
        "compare",
        "sweep",
        "report",
        "plot",
    ]
    files = {"eval": "evaluate", "plot": "report"}
    with one_line_errors():
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(HELP, end="")
        elif argv[0] in ("-V", "--version"):
            print(f"retain {__version__}")
        elif argv[0] not in commands:
            raise Usage(f"command: {argv[0]!r} is none of {', '.join(commands)}")
        else:
            settle()
            # A custom cell, module:Class, may also be in the current folder.
            sys.path.append(os.getcwd())
            module = importlib.import_module(f"retain.cli.{files.get(argv[0], argv[0])}")
            getattr(module, f"{argv[0]}_command")(argv[1:])


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on stderr for a user's mistake, a failed run or Ctrl-C; show a defect in full.

    Output that nobody reads any more is no error.
    """
    with lossy_streams(), ctrl_c():
        try:
            try:
                yield
            except SystemExit as stop:
                if stop.code:
                    raise
            sys.stdout.flush()  # an error of a full disk could not be reported at exit
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except Exception as error:
            try:
                sys.stdout.flush()
            except OSError:  # a full disk
                divert(sys.stdout)
            explained = explain(error)
            if explained is None or os.environ.get("RETAIN_DEBUG"):
                raise
            fail(*explained)


def settle() -> None:
    """Set a user name and a home folder if there are none, as in containers: libraries fail without them."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("LOGNAME", f"uid{os.getuid()}")
        if not os.access(os.environ.get("HOME", ""), os.W_OK):
            import tempfile

            os.environ["HOME"] = os.path.join(tempfile.gettempdir(), f"retain-{os.getuid()}")
            os.makedirs(os.environ["HOME"], mode=0o700, exist_ok=True)


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C during an import end the process at once.

    A library could swallow the exception and continue half imported.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                with contextlib.suppress(OSError):
                    os.write(2, b"retain: interrupted\n")
                os._exit(130)
            frame = frame.f_back
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def fail(message: str, code: int) -> None:
    """Print a one-line error, and exit."""
    print(f"retain: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)
