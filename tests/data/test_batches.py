"""Streams, rows and .npy files: pure batches, complete windows, disjoint splits, refusals in one line."""

import pickle

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from hubdata import tokenizer
from retain.config import data_config
from retain.data import IGNORE, SPLITS, decode, encode, load_data
from retain.data.batches import RowsData, StreamData, evenly_spaced


def stream_data(lengths=(50, 23, 24), seq_len=5):
    starts = np.cumsum((0, *lengths))
    splits = {s: np.arange(a, a + n) for s, a, n in zip(SPLITS, starts, lengths, strict=False)}
    return StreamData(splits, vocab_size=sum(lengths), seq_len=seq_len, kind="tokens", info={})


def rows_data(count=40, length=6, fractions=(0.5, 0.25, 0.25)):
    rows = np.arange(count * length, dtype=np.uint16).reshape(count, length)
    return RowsData(rows, fractions=fractions, vocab_size=rows.size, seq_len=length - 1, kind="tokens", info={})


ALL = {
    "stream": stream_data,
    "rows": rows_data,
    "digits": lambda: load_data(data_config(name="digits", seq_len=63)),
    "retrieval": lambda: load_data(data_config(name="retrieval", seq_len=12)),
    "stdlib": lambda: load_data(data_config(name="stdlib", seq_len=32)),
}


@pytest.fixture(params=ALL, scope="module")
def data(request):
    return ALL[request.param]()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_batch_is_a_pure_function_of_seed_step_and_rank(data):
    first = data.batch(3, 5, 1, 16)
    data.batch(0, 0, 0, 4)
    list(data.windows("validation", 8, limit=8))
    assert same(first, data.batch(3, 5, 1, 16))
    for other in ((4, 5, 1), (3, 6, 1), (3, 5, 2), (5, 3, 1), (1, 5, 3), (3, 1, 5)):
        assert not same(first, data.batch(*other, 16))


def test_batches_of_large_seeds_and_steps_differ(data):
    keys = [(5, 1, 0), (2**32 + 5, 1, 0), (5, 2**32 + 1, 0), (5, 0, 1), (5, 2**32, 0), (2**63, 1, 0)]
    batches = [data.batch(*key, 16) for key in keys]
    assert not any(same(a, b) for i, a in enumerate(batches) for b in batches[:i])


def test_shapes_and_ranges(data):
    for batch in (data.batch(0, 0, 0, 4), next(data.windows("validation", 4)), next(data.windows("train", 4))):
        assert batch["tokens"].shape == (4, data.seq_len) and batch["tokens"].dtype == torch.int64
        assert batch["targets"].shape == (4, data.seq_len + 1) and batch["targets"].dtype == torch.int64
        wanted = batch["targets"][batch["targets"] != IGNORE]
        assert 0 <= batch["tokens"].min() and batch["tokens"].max() < data.vocab_size
        assert 0 <= wanted.min() and wanted.max() < data.vocab_size


def test_windows_do_not_depend_on_batch_size(data):
    def joined(batch_size):
        batches = list(data.windows("test", batch_size, limit=20))
        return {name: torch.cat([b[name] for b in batches]) for name in batches[0]}

    assert same(joined(3), joined(1000))
    assert len(joined(3)["tokens"]) == min(20, data.count("test"))


def test_writing_to_a_batch_changes_nothing_else(data):
    before = next(data.windows("test", 4))["targets"].clone()
    batch = next(data.windows("test", 4))
    targets = batch["targets"].clone()
    batch["tokens"].fill_(1)
    assert torch.equal(batch["targets"], targets)
    batch["targets"].fill_(1)
    assert torch.equal(next(data.windows("test", 4))["targets"], before)


def test_next_token_targets_are_the_tokens():
    for data in (stream_data(), rows_data()):
        batch = data.batch(0, 0, 0, 32)
        assert torch.equal(batch["tokens"], batch["targets"][:, :-1])
        assert (batch["targets"].diff(dim=1) == 1).all()


@pytest.mark.parametrize("split", SPLITS)
def test_stream_windows_predict_every_token_once_in_order(split):
    data = stream_data()
    batches = list(data.windows(split, 4))
    targets = torch.cat([b["targets"] for b in batches])
    tokens = torch.cat([b["tokens"] for b in batches])
    assert len(targets) == data.count(split)
    assert targets[targets != IGNORE].tolist() == data.splits[split].tolist()
    real = targets[:, :-1] != IGNORE
    assert torch.equal(tokens[real], targets[:, :-1][real]) and (tokens[~real] == 0).all()
    assert (targets[:-1] != IGNORE).all()
    padding = data.count(split) * 6 - len(data.splits[split])
    assert (targets[-1] == IGNORE).tolist() == [False] * (6 - padding) + [True] * padding


def test_stream_training_windows_reach_both_ends_and_nothing_beyond():
    data = stream_data(lengths=(9, 6, 6))
    seen = set(data.batch(0, 0, 0, 500)["targets"][:, 0].tolist())
    assert seen == {0, 1, 2, 3}


def test_limited_windows_are_spread_over_the_split():
    assert evenly_spaced(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert evenly_spaced(7, 3).tolist() == [0, 2, 4]
    assert evenly_spaced(3, 9).tolist() == evenly_spaced(3, None).tolist() == [0, 1, 2]
    first = torch.cat([b["targets"][:, 0] for b in stream_data().windows("train", 2, limit=3)])
    assert first.tolist() == [0, 18, 36]


def test_rows_go_to_one_split_each_shuffled():
    data = rows_data()
    rows = {s: torch.cat([b["targets"] for b in data.windows(s, 3)])[:, 0] // 6 for s in SPLITS}
    assert [len(rows[s]) for s in SPLITS] == [20, 10, 10]
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(40))
    assert rows["train"].tolist() != list(range(20))
    assert rows["test"].tolist() == rows_data().index["test"].tolist()
    assert set((data.batch(0, 0, 0, 500)["targets"][:, 0] // 6).tolist()) == set(rows["train"].tolist())


def test_prompts_round_trip():
    text = "naïve → 日本"
    assert encode(text, "text", 256) == list(text.encode())
    assert decode(encode(text, "text", 256), "text") == text
    assert decode(torch.tensor([104, 105, 0xFF]), "text") == "hi\ufffd"
    assert encode(b"\xff".decode("utf-8", "surrogateescape"), "text", 256) == [0xFF]
    assert encode(" 3 0\n16 ", "tokens", 17) == [3, 0, 16]
    assert decode([3, 0, 16], "tokens") == "3 0 16"
    assert encode("", "image", 17) == []


@pytest.mark.parametrize("word", ["x", "17", "-1", "1.5", "²", "٣", "1_0"])
def test_prompt_outside_the_vocabulary(word):
    with pytest.raises(ValueError) as error:
        encode(f"1 {word} 2", "tokens", 17)
    assert str(error.value) == f"prompt: {word!r} is not among the tokens 0 … 16"


def npy(folder, array, **fields):
    path = folder / "tokens.npy"
    np.save(path, array)
    return data_config(name="npy", path=str(path), **fields)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "i8", "u8"])
def test_npy_stream(tmp_path, dtype):
    array = (np.arange(1000) % 100).astype(dtype)
    data = load_data(npy(tmp_path, array, seq_len=8))
    assert data.vocab_size == 100 and data.kind == "tokens"
    assert data.info["tokens"] == {"train": 900, "validation": 50, "test": 50}
    joined = torch.cat([b["targets"].flatten() for s in SPLITS for b in data.windows(s, 16)])
    assert joined[joined != IGNORE].tolist() == array.tolist()
    assert load_data(npy(tmp_path, array, seq_len=8, vocab_size=300)).vocab_size == 300


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_rows(tmp_path, order):
    array = np.asarray(np.arange(200).reshape(40, 5), order=order)
    data = load_data(npy(tmp_path, array, seq_len=4, split=(0.5, 0.25, 0.25)))
    assert data.vocab_size == 200 and data.info["sequences"] == {"train": 20, "validation": 10, "test": 10}
    joined = torch.cat([b["targets"] for s in SPLITS for b in data.windows(s, 16)])
    assert sorted(joined.tolist()) == array.tolist()


def test_npy_is_scanned_in_blocks(tmp_path):
    array = np.zeros(2**20 + 7, dtype=np.uint16)
    array[-1] = 999
    config = npy(tmp_path, array)
    assert load_data(config).vocab_size == 1000


NUMBERS = np.arange(1000)
BAD_ARRAYS = {
    "negative": (NUMBERS - 1, {}, "data.path", "holds the token -1; tokens must not be negative"),
    "vocabulary": (NUMBERS, {"vocab_size": 10}, "data.vocab_size", "10 is too small for token 999; set it to 1000"),
    "huge": (NUMBERS * 2**30, {}, "data.path", "number the tokens from 0, below 16777216"),
    "float": (NUMBERS / 2, {}, "data.path", "holds float64, not integers; save token numbers"),
    "bool": (NUMBERS > 3, {}, "data.path", "holds bool, not integers"),
    "text": (np.array(["a", "b"]), {}, "data.path", "not integers"),
    "objects": (np.array([1, None]), {}, "data.path", "holds pickled Python objects, which are never loaded"),
    "0-D": (np.array(3), {}, "data.path", "has 0 dimensions; save a stream (N,) or rows (N, L)"),
    "3-D": (NUMBERS.reshape(10, 10, 10), {}, "data.path", "has 3 dimensions"),
    "empty": (NUMBERS[:0], {}, "data.path", "is empty"),
    "no rows": (NUMBERS.reshape(10, 100)[:0], {}, "data.path", "is empty"),
    "short": (NUMBERS[:100], {"seq_len": 8}, "data.seq_len", "8 needs 9 tokens, but validation has only 5"),
    "rows": (NUMBERS.reshape(40, 25), {}, "data.seq_len", "64 does not fit rows of 25 tokens; set it to 24"),
    "columns": (NUMBERS[:, None], {"seq_len": 1}, "data.path", "give at least 2 in a row"),
    "few rows": (NUMBERS.reshape(4, 250), {"seq_len": 249}, "data.split", "leaves validation none of 4 rows"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path, case):
    array, fields, field, fragment = BAD_ARRAYS[case]
    config = npy(tmp_path, array, **fields)
    with pytest.raises(ValueError) as error:
        load_data(config)
    message = str(error.value)
    assert message.startswith(f"{field}: ") and fragment in message and "\n" not in message


def cut_npy(path):
    np.save(path, NUMBERS)
    path.write_bytes(path.read_bytes()[:-100])


def zip_npy(path):
    with path.open("wb") as file:
        np.savez(file, NUMBERS)


BAD_NPY_FILES = {
    "text": (lambda p: p.write_text("1 2 3"), "is not a .npy file; write one array of integers with numpy.save"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps([1, 2])), "is not a .npy file"),
    "npz": (zip_npy, "is not a .npy file"),
    "header": (lambda p: p.write_bytes(b"\x93NUMPY"), "is empty or a damaged .npy file; save it again"),
    "junk": (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00\x04\x00{[(\n"), "damaged"),
    "cut": (cut_npy, "damaged"),
    "nothing": (lambda p: p.touch(), "is empty; give a .npy file of integers"),
    "missing": (lambda p: None, "does not exist; give a .npy file of integers"),
    "directory": (lambda p: p.mkdir(), "holds no .npy file"),
}


@pytest.mark.parametrize("case", BAD_NPY_FILES)
def test_bad_npy_files(tmp_path, case):
    write, fragment = BAD_NPY_FILES[case]
    path = tmp_path / "tokens.npy"
    write(path)
    with pytest.raises(ValueError) as error:
        load_data(data_config(name="npy", path=str(path)))
    message = str(error.value)
    assert message.startswith(f"data.path: '{path}' ") and fragment in message and "\n" not in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "a.txt"}, "data.path: 'a.txt' is for text, npy, documents, images, series, not stdlib; leave it out"),
        ({"vocab_size": 9}, "data.vocab_size: 9 is for npy, not stdlib; leave it out"),
        ({"seq_len": 2**24}, "data.seq_len: 16777216 needs 16777217 tokens, but train has only"),
    ],
)
def test_fields_that_do_not_apply(fields, message):
    with pytest.raises(ValueError) as error:
        load_data(data_config(name="stdlib", **fields))
    assert str(error.value).startswith(message)


def test_subwords_are_shown_as_text(tmp_path):
    """As in a report's samples; a run without a tokenizer shows its numbers."""
    path = tokenizer(tmp_path / "tokenizer.json", ["the cat sat on the mat"] * 4)
    splits = dict.fromkeys(SPLITS, np.arange(20))
    data = StreamData(splits, vocab_size=300, seq_len=4, kind="tokens", info={})
    made = Tokenizer.from_file(str(path)).encode("the mat").ids
    assert data.decode(made) == " ".join(map(str, made))
    data.tokenizer = path.read_text()
    assert data.decode(made) == "the mat"
