"""What is below HTTP: sampling for rows of their own settings, streams that come and go, and texts in parts."""

import json
import random

import pytest
import torch

from conftest import tiny
from hubdata import tokenizer
from retain.inference.generate import generate, sample
from retain.inference.text import Text
from retain.runs.run import Run, build
from retain.serve.batch import AHEAD, Batch, Stream
from retain.serve.codec import Codec, tail_of
from retain.serve.sampling import Sampling, sample_each

TEXT = "the cat slept, 中文 and été; наш кот 🐈 slept. the end"


def test_each_row_is_sampled_as_it_is_alone():
    draws = torch.Generator().manual_seed(0)
    kinds = [(1.0, 1.0), (0.0, 1.0), (0.7, 1.0), (1.0, 0.5), (2.0, 0.99), (1e-9, 0.1), (0.0, 0.3), (1e6, 1.0)]
    for chosen in (kinds, kinds[:3], kinds[1:2], kinds[:1]):
        together = [torch.Generator().manual_seed(i) for i in range(len(chosen))]
        alone = [torch.Generator().manual_seed(i) for i in range(len(chosen))]
        found = []
        for _ in range(200):
            logits = 3 * torch.randn(len(chosen), 40, generator=draws)
            drawn = sample_each(logits, [Sampling(*kind, g) for kind, g in zip(chosen, together, strict=True)])
            rows = zip(logits, chosen, alone, strict=True)
            assert drawn == [int(sample(row[None], t, None, p, g)) for row, (t, p), g in rows]
            found.append(drawn)
        assert len({str(drawn) for drawn in found}) > 20


@pytest.fixture(scope="module")
def rnn():
    torch.manual_seed(0)
    return build(tiny(), 256)[0].double().eval().requires_grad_(False)


class Numbers:
    """Tokens as numbers, so that no text hides one."""

    def read(self, token):
        return f"{token} "

    def rest(self):
        return ""


def stream_of(prompt, length, seed, memory=None, kept=False, end=None):
    reader = Numbers()
    sampling = Sampling(1.0 if seed % 3 else 0.0, 0.9, torch.Generator().manual_seed(seed))
    return Stream(prompt, length, sampling, reader, Text(reader.read, reader.rest, (), end), memory, kept)


def alone(rnn, stream, seed):
    """The slow twin: tokens that a stream samples, and its memory after all of them."""
    start = (rnn.m_0 if stream.memory is None else stream.memory)[None]
    prompt = torch.tensor([stream.tokens], dtype=torch.long)
    settings = {"temperature": stream.sampling.temperature, "top_p": 0.9, "seed": seed, "memory": start}
    tokens = [int(token) for token in generate(rnn, prompt, stream.length, **settings)]
    if stream.text.end in tokens:
        tokens = tokens[: tokens.index(stream.text.end)]
    memory = start
    for token in [*stream.tokens, *tokens]:
        memory = rnn.step(torch.tensor([token]), memory)[1]
    return tokens, memory[0]


def test_streams_that_come_and_go_are_each_as_if_alone(rnn):
    draw = random.Random(0)
    batch, waiting, wanted, said, largest = Batch(rnn), [], {}, {}, 0
    for seed in range(60):
        prompt = [draw.randrange(256) for _ in range(draw.choice([0, 1, 5, AHEAD, AHEAD + 1, 3 * AHEAD]))]
        memory = torch.randn(rnn.m_0.shape, dtype=torch.float64) if seed % 4 == 0 else None
        stream = stream_of(prompt, draw.randrange(30), seed, memory, kept=seed % 2 == 0, end=draw.choice([None, 7, 70]))
        waiting.append(stream)
        wanted[stream], said[stream] = alone(rnn, stream, seed), ""
    cancelled = set(waiting[::7])
    streams = list(waiting)
    while waiting or batch.streams:
        batch.add(waiting.pop() for _ in range(min(len(waiting), draw.randrange(3))))
        largest = max(largest, len(batch.streams))
        if draw.random() < 0.3:
            batch.drop(lambda stream: stream in cancelled and draw.random() < 0.5)
        for news in batch.step():
            said[news.stream] += news.text
            assert news.ended == (news.stream not in batch.streams)
    assert largest > 10
    for stream in streams:
        tokens, memory = wanted[stream]
        text = "".join(f"{token} " for token in tokens)
        assert text.startswith(said[stream]) and (stream in cancelled or said[stream] == text)
        if stream not in cancelled:
            assert stream.finish == ("length" if stream.length == 0 and stream.sampled == len(tokens) else "stop")
            if stream.kept:
                torch.testing.assert_close(stream.memory, memory)


def test_a_long_prompt_lets_the_others_go_on(rnn):
    batch = Batch(rnn)
    long = [stream_of([1] * (50 * AHEAD), 1, 1), stream_of([2] * (50 * AHEAD), 1, 2)]
    batch.add([*long, stream_of([3], 10, 3)])
    for _ in range(10):
        batch.step()
    assert batch.streams == long, "the short one has ended"
    assert abs(long[0].at - long[1].at) <= AHEAD, "each in its turn"


@pytest.mark.parametrize("kind", ["bytes", "subwords"])
def test_a_text_in_parts_is_the_whole_text_with_no_character_cut(kind, tmp_path):
    if kind == "subwords":
        tokenizer(tmp_path / "tokenizer.json", ["the cat slept"])
    codec = Codec(Run(tmp_path, tiny(), {"kind": "text", "vocab_size": 10_000}, None, None))
    draw = random.Random(0)
    for _ in range(200):
        before, tokens = codec.encode(draw.choice(["", "наш "])), codec.encode(TEXT)
        said, tail, at = "", None, 0
        while at < len(tokens):
            reader = codec.reader([] if at else before, tail)
            part = tokens[at : at + draw.randrange(5)]
            spoken = "".join(reader.read(token) for token in part) + reader.rest()
            assert "�" not in spoken
            said += spoken
            at += len(part)
            tail = json.loads(json.dumps(tail_of(reader)))
            assert len(json.dumps(tail)) < 200
        assert said == TEXT
    # A prompt begins anew.
    tail = tail_of(codec.reader([], {"next": codec.encode("é")[:1]} if kind == "bytes" else None))
    assert codec.reader(codec.encode("x"), tail).read(codec.encode("y")[0]) == "y"
