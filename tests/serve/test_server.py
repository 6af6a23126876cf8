"""The server, as OpenAI's client meets it.

The RNN computes in float64: in which company a text is made changes the last bits, and no test may hang on those.
"""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from conftest import train_tiny
from hubdata import tokenizer
from retain.config import data_config
from retain.errors import CheckpointError, UserError
from retain.inference.text import generate_text
from retain.runs.run import load_run
from retain.serve.batch import Batch
from runs import wait_for
from serving import post, serving

TEXT = "the cat slept, 中文 and été; наш кот 🐈 slept. the end"


@pytest.fixture(scope="module")
def subword_run(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("subwords")
    tokenizer(folder / "tokenizer.json", [TEXT, "Once there was the cat no. 1"])
    data = data_config(
        name="documents",
        path=str(sources / "stories"),
        seq_len=8,
        reset=False,
        tokenizer=str(folder / "tokenizer.json"),
    )
    return train_tiny(folder / "run", data=data, budget="4steps")


def loaded(path):
    run = load_run(path)
    run.rnn.double()
    return run


@pytest.fixture(scope="module")
def run(text_run):
    return loaded(text_run)


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    with serving(run, tmp_path_factory.mktemp("sessions")) as found:
        yield found


@pytest.fixture
def together(monkeypatch):
    """How many streams each step had."""
    sizes, step = [], Batch.step

    def counted(self):
        sizes.append(len(self.streams))
        return step(self)

    monkeypatch.setattr(Batch, "step", counted)
    return sizes


def complete(server, prompt="to be", **settings):
    return server.client.completions.create(model="rnn", prompt=prompt, **settings)


def texts(answer):
    return [choice.text for choice in answer.choices]


def streamed(events):
    """The text of each choice, why it ended, and the last usage."""
    said, finish, usage = {}, {}, None
    for event in events:
        usage = event.usage or usage
        for choice in event.choices:
            said[choice.index] = said.get(choice.index, "") + choice.text
            assert choice.index not in finish, "what has ended says nothing more"
            if choice.finish_reason:
                finish[choice.index] = choice.finish_reason
    return [said[i] for i in sorted(said)], [finish[i] for i in sorted(finish)], usage


SETTINGS = [
    {"max_tokens": 20, "temperature": 0},
    {"max_tokens": 20, "seed": 3, "temperature": 0.5, "top_p": 0.7},
    {"max_tokens": 40, "seed": 5, "stop": "e"},
    {"max_tokens": 40, "seed": 6, "stop": ["t ", "a", "n", "é"]},
]


@pytest.mark.parametrize("kind", ["bytes", "subwords"])
def test_texts_are_those_of_retain_generate_whole_and_streamed(kind, run, server, subword_run, tmp_path):
    run = run if kind == "bytes" else loaded(subword_run)
    reasons = set()
    with serving(run, tmp_path) as other:
        at = server if kind == "bytes" else other
        for prompt in ("to be", "", "the cat slept, été " * 8):  # the last is read ahead
            for settings in SETTINGS:
                sampling = {k: v for k, v in settings.items() if k not in ("max_tokens", "stop")}
                stop = [*settings.get("stop", [])]
                wanted = generate_text(run, prompt, settings["max_tokens"], stop=stop, **sampling)
                answer = complete(at, prompt, **settings)
                assert texts(answer) == wanted
                said, finish, usage = streamed(
                    complete(at, prompt, **settings, stream=True, stream_options={"include_usage": True})
                )
                assert (said, finish) == (wanted, [answer.choices[0].finish_reason])
                assert usage == answer.usage
                assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
                assert usage.completion_tokens <= settings["max_tokens"]
                assert usage.completion_tokens == settings["max_tokens"] or finish == ["stop"]
                reasons |= {*finish}
    assert reasons == {"stop", "length"}


def test_n_prompts_and_echo(server):
    one, two = (texts(complete(server, prompt, max_tokens=20, seed=4)) for prompt in ("to be", "or"))
    next_seed = texts(complete(server, "to be", max_tokens=20, seed=5))
    assert texts(complete(server, max_tokens=20, seed=4, n=2)) == one + next_seed
    answer = complete(server, [[*b"to be"], [*b"or"]], max_tokens=20, temperature=0, echo=True)
    alone = [complete(server, prompt, max_tokens=20, temperature=0) for prompt in ("to be", "or")]
    assert texts(answer) == ["to be" + alone[0].choices[0].text, "or" + alone[1].choices[0].text]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 40)
    events = complete(server, ["to be", "or"], max_tokens=20, temperature=0, echo=True, stream=True)
    assert streamed(events)[0] == texts(answer)
    assert texts(complete(server, "é", max_tokens=0, echo=True)) == ["é"]
    assert len({*texts(complete(server, max_tokens=20, n=3))}) == 3, "without a seed each is another"
    assert one != two


def test_models(server):
    assert [model.id for model in server.client.models.list()] == ["rnn"]
    assert server.client.models.retrieve("rnn").owned_by == "retain"
    with pytest.raises(openai.NotFoundError, match="ask for 'rnn'"):
        server.client.models.retrieve("gpt-4")


def test_64_sessions_at_once_are_each_as_if_alone(server, together):
    def talk(number, company):
        calls = [("to be, or not " * (number % 9), number % 3), ("é", 1 + number % 7), ("", 20)]
        settings = {"extra_body": {"session": f"{number} {company}"}}
        settings |= {"temperature": 0} if number % 2 else {"seed": number}
        return [texts(complete(server, prompt, max_tokens=length, **settings)) for prompt, length in calls]

    alone = [talk(number, "alone") for number in range(64)]
    assert max(together) == 1
    with ThreadPoolExecutor(64) as crowd:
        assert list(crowd.map(lambda number: talk(number, "together"), range(64))) == alone
    assert max(together) > 16
    assert len({str(said) for said in alone}) > 32


@pytest.mark.parametrize("kind", ["bytes", "subwords"])
def test_a_session_continued_is_one_long_stream(kind, run, server, subword_run, tmp_path):
    with serving(run if kind == "bytes" else loaded(subword_run), tmp_path) as other:
        whole = complete(other, "to be", max_tokens=45, temperature=0)
        said, sampled = "", 0
        for prompt, length in [("to", 0), (" be", 1), *[("", n) for n in range(1, 9)], ("", 8)]:
            answer = complete(
                other, prompt, max_tokens=length, temperature=0, extra_body={"session": "a"}, stream=False
            )
            said += answer.choices[0].text
            sampled += answer.usage.completion_tokens
        assert (said, sampled) == (whole.choices[0].text, 45)
        # Another session, and none, begin at m_0.
        for session in ({}, {"session": "b"}):
            assert texts(complete(other, max_tokens=45, temperature=0, extra_body=session)) == texts(whole)
        # As events the session goes on just so.
        more = texts(complete(other, "or", max_tokens=9, temperature=0, extra_body={"session": "a"}))
        events = complete(other, "or", max_tokens=9, temperature=0, extra_body={"session": "b"}, stream=True)
        assert streamed(events)[0] == more


def when_free(server, **settings):
    """Ask until there is room: the server hears a moment later that a client has hung up."""
    while True:
        try:
            return complete(server, **settings)
        except openai.InternalServerError:
            time.sleep(0.01)


LONG = {"max_tokens": 2**16, "temperature": 0}


def refuses(server):
    """Whether there is no room for one more."""
    try:
        complete(server, **LONG, stream=True).close()
    except openai.InternalServerError as error:
        assert (error.status_code, error.code, error.response.headers["retry-after"]) == (503, "queue_full", "1")
        return True
    return False


def test_a_client_that_hangs_up_frees_its_place_and_leaves_its_session(run, tmp_path, together):
    with serving(run, tmp_path, streams=1, queue=1) as server:
        wanted = texts(complete(server, max_tokens=5, temperature=0, extra_body={"session": "b"}))
        again = texts(complete(server, "", max_tokens=5, temperature=0, extra_body={"session": "b"}))
        complete(server, max_tokens=5, temperature=0, extra_body={"session": "a"})
        first = complete(server, **LONG, stream=True, extra_body={"session": "a"})
        next(iter(first))
        with pytest.raises(openai.ConflictError, match="session: 'a' is in use"):
            complete(server, extra_body={"session": "a"})
        with pytest.raises(openai.ConflictError):
            server.client.delete("/sessions/a", cast_to=object)
        with ThreadPoolExecutor(1) as others:
            second = others.submit(when_free, server, max_tokens=5, temperature=0)
            wait_for(lambda: refuses(server))  # the second waits
            assert not second.done()
            first.close()
            assert texts(second.result()) == wanted
        assert texts(when_free(server, prompt="", max_tokens=5, temperature=0, extra_body={"session": "a"})) == again

        first = complete(server, **LONG, stream=True)
        complete(server, **LONG, stream=True).close()  # which has not begun
        first.close()
        assert texts(when_free(server, max_tokens=5, temperature=0)) == wanted
        with pytest.raises(openai.APITimeoutError):  # which waits for the whole text
            complete(server, **LONG, timeout=0.3)
        assert texts(when_free(server, max_tokens=5, temperature=0)) == wanted
        before = len(together)
        time.sleep(0.2)
        assert len(together) == before, "nothing is made for nobody"


BAD = [
    (b"{", 400, None, "body: is not JSON at character 1"),
    (b"[" * 100_000, 400, None, "body: send one JSON object"),
    (b'{"seed": ' + b"1" * 10_000 + b"}", 400, None, "body: send one JSON object"),
    (b"\xff", 400, None, "body: send one JSON object"),
    ([], 400, None, "body: send one JSON object"),
    ({"prompt": "x" * 2**20}, 413, None, "body: 1048590 bytes are more than 1048576"),
    ({"model": "gpt-4"}, 404, "model", "model: 'gpt-4' is not served here; use 'rnn'"),
    ({"logprobs": 2}, 400, "logprobs", "logprobs: this server does not support it; leave it out"),
    ({"best_of": 2}, 400, "best_of", "best_of: this server does not support it; leave it out"),
    ({"stream_options": {"x": 1}}, 400, "stream_options", "stream_options.x: this server does not support it"),
    ({"prompt": []}, 400, "prompt", "prompt: the list is empty"),
    ({"prompt": ["a", 1]}, 400, "prompt", "prompt: send a text"),
    ({"prompt": [True]}, 400, "prompt", "prompt: send a text"),
    ({"prompt": [97, 256]}, 400, "prompt", "prompt: 256 is not among the tokens 0 … 255"),
    ({"prompt": [[-1]]}, 400, "prompt", "prompt: -1 is not among the tokens 0 … 255"),
    ({"prompt": "\ud800"}, 400, "prompt", "prompt: '\\ud800' holds half of a surrogate pair"),
    ({"max_tokens": -1}, 400, "max_tokens", "max_tokens: -1 is wrong, input should be greater"),
    ({"max_tokens": 10**9}, 400, "max_tokens", "max_tokens: 1000000000 is wrong, input should be less"),
    ({"max_tokens": "9"}, 400, "max_tokens", "max_tokens: '9' is wrong, input should be a valid integer"),
    ({"temperature": -0.1}, 400, "temperature", "temperature: -0.1 is wrong"),
    ({"temperature": float("nan")}, 400, "temperature", "temperature: nan is wrong"),
    ({"top_p": 0}, 400, "top_p", "top_p: 0 is wrong"),
    ({"n": 0}, 400, "n", "n: 0 is wrong"),
    ({"n": 321}, 400, "n", "n: 321 texts are more than can run and wait, 320"),
    ({"seed": -1}, 400, "seed", "seed: -1 is wrong"),
    ({"stop": [""]}, 400, "stop", "stop: send one to four strings"),
    ({"stop": list("abcde")}, 400, "stop", "stop: send one to four strings"),
    ({"session": ""}, 400, "session", "session: '' is wrong"),
    ({"session": "x", "n": 2}, 400, "session", "session: it is one stream"),
]


@pytest.mark.parametrize(("body", "status", "param", "message"), BAD)
def test_a_bad_request_gets_one_line_in_openais_form(body, status, param, message, server):
    found, answer = post(server.url, body)
    error = answer["error"]
    assert (found, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert error["message"].startswith(message) and "\n" not in error["message"]


def test_other_ways_to_be_wrong(server):
    assert "Content-Type" in post(server.url, {}, kind="text/plain")[1]["error"]["message"]
    status, answer = post(f"{server.url}/chat", {})
    assert (status, answer["error"]["message"].split(";")[0]) == (
        404,
        "path: POST /v1/chat/completions is neither POST /v1/completions nor GET /v1/models",
    )
    with pytest.raises(openai.NotFoundError, match="there is no 'nobody'"):
        server.client.delete("/sessions/nobody", cast_to=object)
    with pytest.raises(openai.APIStatusError, match="bytes are more than"):  # far beyond what buffers hold
        complete(server, "x" * 2**23)
    with pytest.raises(openai.BadRequestError, match="suffix: this server does not support it"):
        complete(server, suffix="x")


def test_what_asks_for_nothing_is_no_mistake(server):
    wanted = complete(server, max_tokens=9, temperature=0)
    nothing = {
        "best_of": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "suffix": "",
        "seed": None,
    }
    assert texts(complete(server, max_tokens=9, temperature=0, **nothing)) == texts(wanted)
    assert post(server.url, {})[0] == 200


def test_sessions_are_saved_at_the_end_and_taken_up(run, text_run, retrieval_run, tmp_path):
    asked = {"max_tokens": 7, "temperature": 0}
    with serving(run, tmp_path) as server:
        assert server.taken_up == 0
        whole = texts(complete(server, max_tokens=21, temperature=0))[0]
        said = texts(complete(server, **asked, extra_body={"session": "é/ 🐈"}))[0]
        complete(server, **asked, extra_body={"session": "b"})
        with pytest.raises(UserError, match="sessions: another server uses"), serving(run, tmp_path):
            pass
    assert server.saved == 2
    with serving(run, tmp_path) as server:
        assert server.taken_up == 2
        said += texts(complete(server, "", **asked, extra_body={"session": "é/ 🐈"}))[0]
        server.client.delete("/sessions/b", cast_to=object)
    with serving(run, tmp_path) as server:
        assert server.taken_up == 1
        said += texts(complete(server, "", **asked, extra_body={"session": "é/ 🐈"}))[0]
        server.client.delete("/sessions/%C3%A9%2F%20%F0%9F%90%88", cast_to=object)
    assert said == whole
    with serving(run, tmp_path) as server:
        assert server.taken_up == 0
        complete(server, **asked, extra_body={"session": "c"})
    with pytest.raises(UserError, match="is of another RNN"), serving(load_run(text_run), tmp_path):
        pass  # float32 weights are others
    (tmp_path / "saved" / "sessions.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="sessions.safetensors"), serving(run, tmp_path):
        pass
    with pytest.raises(UserError, match=r"run: .* is of numbers"), serving(load_run(retrieval_run), tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_texts_under_way_at_the_end_are_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr("retain.serve.server.GRACE", 0.3)
    with ThreadPoolExecutor(2) as others:
        with serving(run, tmp_path) as server:
            complete(server, max_tokens=5, extra_body={"session": "a"})
            events = iter(complete(server, **LONG, stream=True, extra_body={"session": "a"}))
            next(events)
            rest = others.submit(list, events)
            whole = others.submit(complete, server, **LONG)
            assert complete(server, max_tokens=50).usage.completion_tokens == 50
        with pytest.raises(openai.APIError, match="server: it is shutting down"):
            rest.result()
        with pytest.raises(openai.InternalServerError, match="server: it is shutting down"):
            whole.result()
    assert server.saved == 1, "the session is as it was before the call that did not end"


def test_one_stream_that_fails_is_the_only_one(text_run, tmp_path, monkeypatch, caplog):
    run = loaded(text_run)
    run.rnn.embed.weight.data[7] = float("nan")
    with serving(run, tmp_path) as server, ThreadPoolExecutor(4) as others:
        wanted = texts(complete(server, max_tokens=400, temperature=0))
        good = [others.submit(complete, server, max_tokens=400, temperature=0) for _ in range(3)]
        with pytest.raises(openai.InternalServerError, match="not finite after 0 tokens of its own"):
            complete(server, "to\7", extra_body={"session": "a"})
        with pytest.raises(openai.APIError, match="not finite after 0 tokens of its own"):
            list(complete(server, "to\7", stream=True))
        assert [texts(one.result()) for one in good] == [wanted] * 3
        with pytest.raises(openai.NotFoundError):  # it has not begun
            server.client.delete("/sessions/a", cast_to=object)
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "step", lambda self: 1 / 0)
            with pytest.raises(openai.InternalServerError, match="a step failed; its log says why"):
                complete(server)
        assert "ZeroDivisionError" in caplog.text
        assert texts(complete(server, max_tokens=400, temperature=0)) == wanted


def test_the_code_of_the_docs_runs(server, capsys):
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page, flags=re.M)[[*re.findall(r"^## (.*)", page, re.M)].index("A server") + 1]
    names = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.S):
        exec(block.replace("http://127.0.0.1:8000/v1", server.url).replace('"stdlib"', '"rnn"'), names)
    names["client"].close()
    assert len(capsys.readouterr().out) > 20 and "talk" in names
    (body,) = re.findall(r"curl .* -d '(.*)'", section)
    assert post(server.url, json.loads(body))[0] == 200
