"""Many requests of all kinds, and a server that is no larger for them. RETAIN_SOAK says how many, 500 otherwise."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest

from serving import post

WARM = 300
COUNT = int(os.environ.get("RETAIN_SOAK", "500"))
SERVE = [sys.executable, "-W", "error", "-m", "retain", "serve"]


def started(run, *options):
    """The process of a server, and its URL."""
    process = subprocess.Popen([*SERVE, str(run), "--port", "0", *options], stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    return process, re.search(r"http://\S+/v1", line)[0]


def ask(client, url, number):
    """One request of a kind that follows from its number."""
    draw = random.Random(number)
    settings = {"prompt": "to be or not " * draw.randrange(12), "max_tokens": draw.randrange(40), "seed": number}
    kind = draw.randrange(8)
    try:
        if kind == 0:
            assert post(url, {"prompt": 1} if draw.random() < 0.5 else b"{")[0] == 400
            return
        if kind == 1:
            settings |= {"max_tokens": 10_000, "stream": True}
        elif kind in (2, 3):
            settings["stream"] = True
        elif kind == 4:
            settings["n"] = draw.randrange(1, 5)
        elif kind in (5, 6):
            settings["extra_body"] = {"session": f"{draw.randrange(50)}"}
        answer = client.completions.create(model="run", **settings)
        if kind == 1:
            next(iter(answer))
            answer.close()
        elif settings.get("stream"):
            assert list(answer)[-1].choices[0].finish_reason == "length"
        else:
            assert answer.usage.completion_tokens == settings["max_tokens"] * settings.get("n", 1)
    except openai.ConflictError:
        assert kind in (5, 6), "two calls of one session"


@pytest.mark.slow
def test_memory_is_flat_over_many_requests(text_run, tmp_path):
    process, url = started(text_run, "--sessions", str(tmp_path), "--streams", "16", "--queue", "64")
    try:
        server = psutil.Process(process.pid)

        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            with ThreadPoolExecutor(16) as crowd:
                list(crowd.map(lambda number: ask(client, url, number), range(WARM)))  # what is made once is made
                before, files, start = server.memory_info().rss, server.num_fds(), time.perf_counter()
                list(crowd.map(lambda number: ask(client, url, number), range(COUNT)))
            seconds = time.perf_counter() - start
        after = server.memory_info().rss
        print(
            f"{COUNT} requests after {WARM}: {before / 2**20:.1f} to {after / 2**20:.1f} MiB, {COUNT / seconds:.0f}/s"
        )
        assert after - before < 8 * 2**20
        assert server.num_fds() <= files + 16
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[0]
    assert process.returncode == 0 and re.search(r"^\d+ sessions saved in ", said, re.M)
