"""Processes forked from one that has imported PyTorch: importing it takes longer than most of what they do."""

import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["accelerate", "torch._dynamo", "torch.distributed"])


class Forked:
    """A process as of `subprocess.Popen([sys.executable, "-W", "error", "-c", program, *arguments])`.

    `merged` puts stderr into stdout. `environment` comes on top of this process's. It dies with this process.
    """

    def __init__(self, program, *arguments, merged=False, **environment):
        self.folder = tempfile.TemporaryDirectory()
        files = [Path(self.folder.name, name) for name in ("stdout", "stdout" if merged else "stderr")]
        words, env = ["-c", *map(str, arguments)], os.environ | {k: str(v) for k, v in environment.items()}
        self.merged, self.process = merged, _context.Process(target=_run, args=(program, words, files, dict(env)))
        self.process.daemon = True
        self.process.start()

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
        names = ("stdout",) if self.merged else ("stdout", "stderr")
        said = [Path(self.folder.name, name).read_text() for name in names]
        self.folder.cleanup()
        return said[0], None if self.merged else said[1]


def _run(program, words, files, env):
    os.environ.clear()
    os.environ.update(env)
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("error")
    sys.argv = words
    exec(program, {"__name__": "__main__"})
