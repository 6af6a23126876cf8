"""Sampling text: what tokens become as they come, where a text ends, and where a prompt comes from."""

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import tiny
from hubdata import tokenizer
from retain.data.subwords import UNFINISHED, Subwords
from retain.inference.text import generate_text, stream_text
from retain.runs.run import Run, load_run

TEXT = "the cat slept, 中文 and été; наш кот 🐈 slept. the end"


def byte_fallback(tokens):
    """As Llama's: words of a vocabulary with ▁ for a space, and bytes for what it lacks."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["▁", *"thecaslpnd", "▁the", "▁cat", "t", "h"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {word: 256 + i for i, word in enumerate(dict.fromkeys(words))}
    merges = [("t", "h"), ("▁", "the"), ("c", "a"), ("▁", "cat"), ("th", "e"), ("ca", "t")]
    vocabulary |= {a + b: len(vocabulary) + i for i, (a, b) in enumerate(merges) if a + b not in vocabulary}
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


def words(decoder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = {"WordPiece": ["the", "cat", "sl", "##ept"], "Metaspace": ["▁the", "▁cat", "▁sl", "ept"]}[decoder]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(pieces)}, unk_token="the"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = getattr(decoders, decoder)()
    return made


def made(kind, tmp_path):
    """A tokenizer, and tokens of text."""
    from tokenizers import Tokenizer

    if kind == "ByteLevel":
        one = Tokenizer.from_file(str(tokenizer(tmp_path / "tokenizer.json", [TEXT])))
        return one, one.encode(TEXT).ids
    if kind == "ByteFallback":
        one = byte_fallback(TEXT)
        return one, one.encode(TEXT).ids
    return words(kind), [0, 1, 2, 3, 0, 0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["ByteLevel", "ByteFallback", "WordPiece", "Metaspace"])
def test_subwords_one_by_one_are_the_text_of_all(kind, tmp_path):
    one, ids = made(kind, tmp_path)
    whole = one.decode(ids, skip_special_tokens=False)
    assert kind not in ("ByteLevel", "ByteFallback") or whole == TEXT
    for start in range(len(ids)):
        before = one.decode(ids[:start], skip_special_tokens=False)
        if not whole.startswith(before) or before.endswith("�"):
            continue  # no prompt ends within a character
        reader = Subwords(one, ids[:start])
        pieces = [reader.read(token) for token in ids[start:]]
        assert before + "".join(pieces) + reader.rest() == whole
        for i in range(len(pieces)):
            assert whole.startswith(before + "".join(pieces[:i])), "what is out is never taken back"


def test_a_character_that_does_not_end_costs_the_characters_before_it_nothing():
    from tokenizers import Tokenizer, decoders, models

    # A token that ends é and begins another character.
    made = Tokenizer(models.WordLevel({"Ã": 0, "©ä": 1, "a": 2}, unk_token="a"))
    made.decoder = decoders.ByteLevel()
    reader = Subwords(made, [])
    assert [reader.read(token) for token in (2, 0, 1)] == ["a", "", ""]
    assert reader.rest() == "é"


@pytest.mark.parametrize("kind", ["ByteLevel", "ByteFallback"])
def test_bytes_that_are_no_text_stop_no_sample_and_are_not_kept(kind, tmp_path):
    one = made(kind, tmp_path)[0]
    bad = one.token_to_id({"ByteLevel": "ÿ", "ByteFallback": "<0xFF>"}[kind])
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(one.get_vocab_size(), (5_000,), generator=generator).tolist()
    for tokens in ([bad] * 1000, anything):
        reader = Subwords(one, [])
        said = ""
        for token in tokens:
            said += reader.read(token)
            assert len(reader.last) + len(reader.next) <= 2 * UNFINISHED
        assert said.count("�") > len(tokens) / 20
        assert "".join(reader.read(token) for token in one.encode("a cat").ids).endswith("cat")


def fake_run(folder, kind="text", end=None, vocab_size=256):
    """A run whose RNN is never asked."""
    return Run(folder, tiny(), {"kind": kind, "vocab_size": vocab_size, "end": end}, None, None)


@pytest.fixture
def drawn(monkeypatch):
    """Says what the RNN samples: rows of tokens, of which those that nobody asks for are left over."""

    def say(*rows):
        left = [torch.tensor(step) for step in zip(*rows, strict=True)]
        monkeypatch.setattr(
            "retain.inference.text.generate", lambda *a, **k: iter(lambda: left.pop(0) if left else None, None)
        )
        return left

    return say


def first_whole(text, stop):
    """`text` up to the stop string that is whole first, character by character."""
    for length in range(len(text) + 1):
        if found := [length - len(s) for s in stop if text[:length].endswith(s)]:
            return text[: min(found)], True
    return text, False


@pytest.mark.parametrize("kind", ["bytes", "ByteLevel"])
def test_text_ends_before_the_first_stop_string(kind, drawn, tmp_path):
    """Wherever tokens cut it, and what is out is never taken back."""
    random = np.random.default_rng(0)
    one = made(kind, tmp_path)[0] if kind == "ByteLevel" else None  # which leaves its tokenizer.json in the run
    ended = 0
    for _ in range(300):
        text = "".join(random.choice(["a", "b", "é", "the cat", "\n", "🐈"], 12))
        stop = ["".join(random.choice(["a", "b", "é", "the", " cat", "\n", "🐈"], n)) for n in random.integers(1, 4, 2)]
        left = drawn(one.encode(text).ids if one else list(text.encode()))
        wanted, whole = first_whole(text, stop)
        said = ""
        for (piece,) in stream_text(fake_run(tmp_path), stop=stop):
            said += piece.text
            assert wanted.startswith(said)
        assert said == wanted
        assert whole or not left
        ended += whole
    assert 50 < ended < 250


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("abcd", ["cd"], ["a", "b", "", "", ""]),
        ("abcx", ["cd"], ["a", "b", "", "cx", ""]),
        ("aab", ["ab"], ["", "a", "", ""]),
        ("abc", ["cd"], ["a", "b", "", "c"]),  # nothing comes after it
        ("abc", [], ["a", "b", "c", ""]),
        ("xé", ["é"], ["x", "", "", ""]),
        ("xê", ["é"], ["x", "", "ê", ""]),  # which has a byte in common
        ("abc", ["bc", "abc"], ["", "", "", ""]),  # one that holds another that ends with it
        ("abcd", ["abcd", "bc"], ["", "", "a", ""]),
    ],
)
def test_what_may_become_a_stop_string_is_held_back(text, stop, pieces, drawn, tmp_path):
    drawn(list(text.encode()))
    assert [piece.text for (piece,) in stream_text(fake_run(tmp_path), stop=stop)] == pieces


def test_each_text_ends_by_itself(drawn, tmp_path):
    left = drawn(b"one;wo", b"two\xffxy", b"three;", b"fourXX")
    run = fake_run(tmp_path, end=255)
    assert generate_text(run, count=4, stop=[";", "rX"]) == ["one", "two", "three", "fou"]
    assert not left
    left = drawn(b"a;bcd", b"ab;cd")
    pieces = list(stream_text(run, count=2, stop=[";"]))
    assert len(left) == 2, "when all have ended, no more is sampled"
    assert [piece.token for piece, _ in pieces] == [97, 59, None, None]
    assert [piece.token for _, piece in pieces] == [97, 98, 59, None]
    drawn([97, 195], [97, 169])  # what is held back comes at last, but for half of a character
    assert generate_text(run, count=2, stop=["aX"]) == ["a", "a�"]


def test_the_same_seed_gives_the_same_texts(text_run, retain):
    run = load_run(text_run)
    three = generate_text(run, "to be", 40, count=3, seed=5)
    assert three == generate_text(run, "to be", 40, count=3, seed=5)
    assert three != generate_text(run, "to be", 40, count=3, seed=6)
    assert len(set(three)) == 3, "each has draws of its own"
    assert [len(texts) for texts in (generate_text(run, length=0, count=2), generate_text(run, length=1))] == [2, 1]
    assert generate_text(run, length=0, count=2) == ["", ""]


def test_several_texts_are_printed_one_after_the_other(text_run, retrieval_run, retain):
    for path, prompt in ((text_run, "to be"), (retrieval_run, "0 3")):
        line = ["generate", path, "--count", "3", "--prompt", prompt, "--length", "9", "--seed", "5"]
        code, said, complaint = retain(*line)
        assert (code, complaint) == (0, "")
        samples = json.loads((path / "samples.json").read_text())["samples"]
        assert [sample["text"] for sample in samples] == generate_text(load_run(path), prompt, 9, count=3, seed=5)
        assert said == "".join(f"--- {i} of 3 ---\n{prompt}{s['text']}\n" for i, s in enumerate(samples, 1))
        assert [sample["count"] for sample in samples] == [len(sample["tokens"]) for sample in samples] == [9] * 3
        assert retain(*line)[1] == said


def test_a_stop_string_on_the_command_line(text_run, retain, drawn):
    drawn(list(b"one two\n\n"))
    assert retain("generate", text_run, "--prompt", "so ", "--stop", "wo\n", "--stop", " t")[1] == "so one\n"
    saved = json.loads((text_run / "samples.json").read_text())
    assert saved["samples"] == [{"count": 5, "tokens": list(b"one t"), "text": "one"}]
    assert saved["settings"]["stop"] == ["wo\n", " t"]


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        (b"It was", "It was"),
        (b"It was\n", "It was"),
        (b"It was\r\n", "It was"),
        (b" It\n\nwas\n\n", " It\n\nwas\n"),
        ("\ufeffétait 🐈".encode(), "était 🐈"),
        (b"@file", "@file"),
    ],
)
def test_a_prompt_from_a_file_or_stdin(content, prompt, text_run, retain, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    for argument in (f"@{tmp_path / 'prompt.txt'}", "-"):
        code, said, complaint = retain("generate", text_run, "--prompt", argument, "--length", "3")
        assert (code, complaint) == (0, "") and said.startswith(prompt)
        assert json.loads((text_run / "samples.json").read_text())["settings"]["prompt"] == prompt
    assert said == retain("generate", text_run, f"--prompt={prompt.replace('@', '@@')}", "--length", "3")[1]


def test_a_prompt_from_a_file_may_be_of_numbers(digits_run, retrieval_run, retain, tmp_path):
    (tmp_path / "numbers").write_text("0 3\n8\n")
    assert retain("generate", retrieval_run, "--prompt", f"@{tmp_path / 'numbers'}", "--length", "2")[0] == 0
    assert retain("generate", digits_run, "--prompt", f"@{tmp_path / 'numbers'}", "--count", "2")[0] == 0
    assert [i[:3] for i in json.loads((digits_run / "samples.json").read_text())["images"]] == [[0, 3, 8]] * 2


@pytest.mark.parametrize(
    ("run", "line", "fragments"),
    [
        ("text_run", "--prompt @nowhere.txt", ["prompt", "'nowhere.txt'", "No such file", "@@"]),
        ("text_run", "--prompt @.", ["prompt", "'.'", "directory"]),
        ("text_run", "--prompt @", ["prompt", "directory", "@@"]),
        ("text_run", "--prompt @binary", ["prompt", "'binary'", "UTF-8"]),
        ("text_run", "--prompt @latin", ["prompt", "'latin'", "UTF-8"]),
        ("text_run", "--prompt @empty", ["prompt", "'empty'", "empty"]),
        ("text_run", "--prompt -", ["prompt", "stdin is empty", "leave --prompt out"]),
        ("retrieval_run", "--prompt @letters", ["prompt", "'x'", "0 … 8"]),
        ("retrieval_run", "--stop 3", ["stop", "'3'", "tokens", "leave it out"]),
        ("digits_run", "--stop 3", ["stop", "'3'", "images", "leave it out"]),
        ("digits_run", "--complete 2 --stop 3", ["stop", "leave it out"]),
        ("text_run", "--stop=", ["stop", "empty"]),
        ("text_run", "--stop", ["--stop", "--help"]),
        ("text_run", "--count 0", ["count", "0", "at least 1"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run, line, fragments, retain, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    for name, content in {"binary": b"a\0b", "latin": b"caf\xe9", "empty": b"\n", "letters": b"3 x"}.items():
        (tmp_path / name).write_bytes(content)
    code, said, complaint = retain("generate", request.getfixturevalue(run), *line.split())
    assert (code, said, complaint.count("\n")) == (2, "", 1), complaint
    for fragment in fragments:
        assert fragment in complaint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": "abc"}, "stop: 'abc' must be a list"),
        ({"stop": ["a", ""]}, "stop: .* none of them empty"),
        ({"count": 0}, "count: 0 must be at least 1"),
        ({"length": -1}, "length: -1"),
        ({"top_k": 0}, "top_k: 0"),
    ],
)
def test_in_python_they_are_refused_before_the_first_piece(settings, message, text_run):
    with pytest.raises(ValueError, match=message):
        stream_text(load_run(text_run), **settings)


def test_ctrl_c_ends_a_long_text_with_a_line_break(text_run):
    code = "import sys; from retain.cli import main; main(['generate', sys.argv[1], '--length', '100000000'])"
    command = [sys.executable, "-c", code, str(text_run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as process:
        said = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, complaint = process.communicate()
    assert process.returncode == 130
    assert (said + rest).endswith(b"\n") and complaint == b"retain: interrupted\n"
