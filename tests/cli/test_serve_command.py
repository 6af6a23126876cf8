"""`retain serve` as a process: signals, and what a user may get wrong."""

import re
import signal
import subprocess
import sys

import openai
import pytest

from retain.serve.server import open_socket

SERVE = [sys.executable, "-W", "error", "-m", "retain", "serve"]


def started(*options):
    process = subprocess.Popen([*SERVE, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    return process, line, re.search(r"http://\S+/v1", line)[0]


def test_signals_end_it_with_its_sessions_saved(text_run, tmp_path):
    sessions = tmp_path / "of" / "talks"
    options = [str(text_run), "--port", "0", "--sessions", str(sessions)]
    settings = {"model": "run", "temperature": 0, "extra_body": {"session": "a"}}
    said = []
    for number in (signal.SIGINT, signal.SIGTERM):
        process, line, url = started(*options)
        try:
            taken_up = ", 1 session taken up" if said else ""
            assert line == f"{text_run} at {url}{taken_up}; Ctrl-C ends it\n"
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
                prompt = "" if said else "to be"
                said.append(client.completions.create(prompt=prompt, max_tokens=9, **settings).choices[0].text)
                if number == signal.SIGTERM:
                    whole = client.completions.create(model="run", prompt="to be", max_tokens=18, temperature=0)
                process.send_signal(number)
                assert process.communicate() == (f"1 session saved in {sessions}\n", "")
                assert process.returncode == 0
        finally:
            process.kill()
            process.wait()
    assert "".join(said) == whole.choices[0].text


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--port", "70000"], ["port: 70000 must lie in 0 … 65535"]),
        (["--streams", "0"], ["streams: 0 must be at least 1"]),
        (["--queue", "-1"], ["queue: -1 must not be negative"]),
        (["--host", "no.such.host.invalid"], ["host: 'no.such.host.invalid' is not known here", "127.0.0.1"]),
        (["--host", "192.0.2.1"], ["host: '192.0.2.1' is not an address of this machine", "0.0.0.0"]),
        (["--sessions", "FILE"], ["sessions: ", "cannot be written", "--sessions DIR"]),
    ],
)
def test_a_mistake_is_one_line(options, fragments, retain, text_run, tmp_path):
    (tmp_path / "file").touch()
    options = [str(tmp_path / "file") if option == "FILE" else option for option in options]
    code, said, complaint = retain("serve", text_run, "--port", "0", *options)
    assert (code, said, complaint.count("\n")) == (2, "", 1)
    assert all(fragment in complaint for fragment in fragments), complaint
    assert not (text_run / "sessions").exists()


def test_a_port_in_use(retain, text_run):
    with open_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, said, complaint = retain("serve", text_run, "--port", port)
    assert (code, said) == (2, "")
    assert complaint == f"retain: port: {port} is in use; end what listens there, or give another --port\n"


@pytest.mark.parametrize(("kind", "what"), [("digits_run", "images"), ("retrieval_run", "numbers")])
def test_a_run_of_no_text(kind, what, retain, request):
    path = request.getfixturevalue(kind)
    code, said, complaint = retain("serve", path, "--port", "0")
    assert (code, said) == (2, "")
    assert complaint == f"retain: run: {path} is of {what}, and a server is for text; use retain generate {path}\n"
    assert not (path / "sessions").exists()


@pytest.mark.parametrize("library", ["fastapi", "uvicorn"])
def test_a_library_that_is_missing(library, retain, text_run, monkeypatch):
    for module in ("server", "app"):
        monkeypatch.delitem(sys.modules, f"retain.serve.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    code, said, complaint = retain("serve", text_run)
    assert (code, said) == (2, "")
    assert complaint == "retain: serve: needs fastapi and uvicorn; run pip install 'retain[serve]'\n"


def test_a_host_that_others_reach_is_told(retain, text_run, monkeypatch):
    monkeypatch.setattr("retain.serve.server.serve", lambda run, listening, folder, **options: listening.close() or 0)
    code, said, complaint = retain("serve", text_run, "--port", "0", "--host", "0.0.0.0")
    assert (code, said) == (0, "no session to save\n")
    assert complaint == "retain: host: 0.0.0.0 is open to other machines, and asks for no password\n"
