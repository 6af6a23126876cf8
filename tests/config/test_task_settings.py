"""Settings of memory tasks: what is impossible is refused in one line, and what is not given is the task's own."""

import pytest

from retain.config import data_config
from retain.data import load_data

BAD = [
    ("retrieval", {"seq_len": 3}, "data.seq_len: 3 is too short for retrieval; give at least 4"),
    ("retrieval", {"symbols": 1}, "data.symbols: 1 leaves retrieval nothing to remember; give at least 2"),
    ("retrieval", {"vocab_size": 5}, "data.vocab_size: 5 is for npy, not retrieval; leave it out"),
    (
        "retrieval",
        {"path": "x"},
        "data.path: 'x' is for text, npy, documents, images, series, not retrieval; leave it out",
    ),
    ("retrieval", {"depth": 3}, "data.depth: 3 is not read by retrieval; leave it out"),
    ("s5", {"symbols": 7}, "data.symbols: 7 is not read by s5; leave it out"),
    ("selective_copy", {"reverse": True}, "data.reverse: True is not read by selective_copy; leave it out"),
    ("copy", {"seq_len": 64, "min_seq_len": 65}, "data.min_seq_len: 65 is above data.seq_len 64; lower it, too"),
    ("copy", {"label_noise": 1.0}, "data.label_noise: 1.0 must be at least 0 and below 1"),
    ("copy", {"label_noise": float("nan")}, "data.label_noise: nan must be at least 0 and below 1"),
    (
        "copy",
        {"copy_len": 33},
        "data.seq_len: 64 is too short for copy of 33 symbols; give at least 66, or a smaller data.copy_len",
    ),
    (
        "selective_copy",
        {"seq_len": 31},
        "data.seq_len: 31 is too short for selective_copy of 16 symbols; give at least 32, or a smaller data.copy_len",
    ),
    ("copy", {"copy_len": 0}, "copy_len: 0 must be positive and finite"),
    ("copy", {"min_seq_len": 0}, "min_seq_len: 0 must be positive and finite"),
    (
        "stack",
        {"min_seq_len": 8},
        "data.min_seq_len: 8 is too short: data.seq_len: 8 is too short for stack of depth 10; give at least 11, "
        "or a smaller data.depth",
    ),
    ("stdlib", {"min_seq_len": 8}, "data.min_seq_len: 8 is for memory tasks, not stdlib; leave it out"),
    (
        "stack",
        {"seq_len": 10},
        "data.seq_len: 10 is too short for stack of depth 10; give at least 11, or a smaller data.depth",
    ),
    (
        "dyck",
        {"depth": 64},
        "data.seq_len: 64 is too short for dyck of depth 64; give at least 65, or a smaller data.depth",
    ),
    (
        "keys_values",
        {"symbols": 2},
        "data.pairs: 8 different keys are more than the 4 that data.symbols 2 and data.string_len 2 allow; "
        "give fewer pairs, or more symbols",
    ),
    ("keys_values", {"string_len": 70}, "data.string_len: 70 is longer than data.seq_len 64; give less"),
    (
        "keys_values",
        {"pairs": 16},
        "data.seq_len: 64 is too short for keys_values of 16 pairs; give at least 68, or a smaller data.pairs",
    ),
    (
        "mqar",
        {"pairs": 33, "seq_len": 512},
        "data.pairs: 33 different keys are more than data.symbols 32 allows; give at most 32 pairs, or more symbols",
    ),
    (
        "mqar",
        {"seq_len": 31},
        "data.seq_len: 31 is too short for mqar of 8 pairs; give at least 32, or a smaller data.pairs",
    ),
    ("modular", {"seq_len": 4}, "data.seq_len: 4 is too short for modular; give at least 5"),
    (
        "keys_values",
        {"string_len": 21, "pairs": 1, "seq_len": 100},
        "data.string_len: 21 is too long for 8 symbols; keys must fit 63 bits",
    ),
    ("copy", {"symbols": 10**9}, "data.symbols: 1000000000 are too many for copy; give at most 65536"),
    ("modular", {"symbols": 1}, "data.symbols: 1 leaves modular nothing to remember; give at least 2"),
    ("mqar", {"symbols": 1, "pairs": 1}, "data.symbols: 1 leaves mqar nothing to remember; give at least 2"),
]


@pytest.mark.parametrize(("name", "fields", "message"), BAD)
def test_bad_settings(name, fields, message):
    with pytest.raises(ValueError) as error:
        load_data(data_config(name=name, **fields))
    assert str(error.value) == message


def test_a_task_has_its_own_sizes_unless_told():
    assert load_data(data_config(name="retrieval", symbols=8)).info == load_data(data_config(name="retrieval")).info
