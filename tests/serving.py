"""A server in a thread of the test's own process, and what talks to it."""

import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

from openai import OpenAI

from retain.serve.server import address_of, open_socket, serve


@contextmanager
def serving(run, folder, **options):
    """Serve inside; gives `url`, `client` (OpenAI's, which tries once), and afterwards `saved`."""
    stop, ready, listening = threading.Event(), threading.Event(), open_socket("127.0.0.1", 0)
    found = SimpleNamespace(url=address_of(listening), taken_up=None, saved=None, error=None)

    def say(sessions):
        found.taken_up = sessions
        ready.set()

    def work():
        try:
            found.saved = serve(run, listening, folder, name="rnn", ready=say, stop=stop, **options)
        except BaseException as error:
            found.error = error
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    found.client = OpenAI(base_url=found.url, api_key="none", max_retries=0, timeout=60)
    try:
        if found.error is None:
            yield found
    finally:
        stop.set()
        thread.join()
        found.client.close()
    if found.error is not None:
        raise found.error


def post(url, body, kind="application/json"):
    """POST bytes, or what becomes JSON: (status, answer)."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/completions", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
