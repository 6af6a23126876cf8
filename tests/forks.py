"""Processes forked from one that has imported PyTorch: importing it takes longer than most of what they do."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["accelerate", "torch._dynamo", "torch.distributed"])
NAMES = ("stdin", "stdout", "stderr")


class Forked:
    """A process as of `subprocess.Popen([sys.executable, "-W", "error", "-c", program, *arguments])`.

    A stream is a file or `subprocess.PIPE`; `communicate` reads those that are not given. `merged` puts stderr into
    stdout. `environment` comes on top of this process's. The process dies with this one.
    """

    def __init__(self, program, *arguments, stdin=None, stdout=None, stderr=None, merged=False, **environment):
        self.folder = tempfile.TemporaryDirectory()
        self.merged, self.stdin, self.stdout, self.stderr = merged, None, None, None
        there = [self._stream(number, given) for number, given in enumerate((stdin, stdout, stderr))]
        words, env = ["-c", *map(str, arguments)], dict(os.environ) | {k: str(v) for k, v in environment.items()}
        self.process = _context.Process(target=_run, args=(program, words, there, env), daemon=True)
        self.process.start()
        for stream in there:
            stream.close()

    def _stream(self, number, given):
        """What the process gets: the end of a pipe or a file, as what a process can be sent."""
        if given == subprocess.PIPE:
            ends = os.pipe()
            ours, theirs = ends if number else ends[::-1]
            setattr(self, NAMES[number], open(ours, "rb" if number else "wb", buffering=0))  # noqa: SIM115
        elif given is not None:
            theirs = os.dup(given if isinstance(given, int) else given.fileno())
        elif number == 0:
            theirs = os.open(os.devnull, os.O_RDONLY)
        else:
            theirs = os.open(self._file(NAMES[number]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return Connection(theirs)

    def _file(self, name):
        return Path(self.folder.name, "stdout" if self.merged else name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.communicate()

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()

    def communicate(self, timeout=None):
        """What was printed, to stdout and to stderr."""
        self.process.join(timeout)
        assert self.returncode is not None, "it has not ended in time"
        said = {name: file.read_text() for name in NAMES[1:] if (file := Path(self.folder.name, name)).exists()}
        self.folder.cleanup()
        return said.get("stdout"), said.get("stderr")


def _run(program, words, streams, env):
    os.environ.clear()
    os.environ.update(env)
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    # Those that are there are of other files.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("error")
    sys.argv = words
    exec(program, {"__name__": "__main__"})
