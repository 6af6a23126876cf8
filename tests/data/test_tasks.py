"""Memory tasks: the oracle answers them, guessing scores chance, evaluation sequences are fixed and apart."""

import numpy as np
import pytest
import torch

from retain.config import DataConfig
from retain.data import IGNORE, SPLITS, load_data
from retain.data.batches import generator
from retain.data.tasks import TASKS, Retrieval

CONFIGS = {name: DataConfig(name=name, seq_len=16) for name in TASKS}


@pytest.fixture(params=TASKS, scope="module")
def config(request):
    return CONFIGS[request.param]


def test_oracle_knows_every_answer(config):
    task = TASKS[config.name](config)
    tokens, targets = task.generate(generator(0, 0), 500)
    assert tokens.shape == (500, 16) and targets.shape == (500, 17)
    assert tokens.min() >= 0 and tokens.max() < task.vocab_size
    assert (targets[:, 0] == IGNORE).all() and (targets != IGNORE).any(axis=1).all()
    assert np.array_equal(task.oracle(tokens), targets)


def test_chance_is_what_guessing_scores(config):
    task = TASKS[config.name](config)
    _, targets = task.generate(generator(1, 0), 20_000)
    answers = targets[targets != IGNORE]
    best = np.unique(answers, return_counts=True)[1].max() / len(answers)
    assert best == pytest.approx(task.chance, rel=0.1)


def test_evaluation_sequences_are_fixed_and_apart(config):
    data, again = load_data(config), load_data(config)
    assert data.answers and data.chance == TASKS[config.name](config).chance and data.info == again.info
    splits = {s: torch.cat([b["tokens"] for b in data.windows(s, 500)]) for s in SPLITS}
    for split, tokens in splits.items():
        assert len(tokens) == data.count(split) == 2048
        assert torch.equal(tokens, torch.cat([b["tokens"] for b in again.windows(split, 300)]))
    trained = torch.cat([data.batch(seed, step, 0, 2048)["tokens"] for seed in (0, 1) for step in range(3)])
    seen = [set(map(tuple, tokens.tolist())) for tokens in (*splits.values(), trained)]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_retrieval_by_its_definition():
    tokens, targets = Retrieval(seq_len=9, symbols=3).generate(generator(0, 0), 3000)
    marked = (tokens >= 3) & (tokens < 6)
    assert (marked.sum(axis=1) == 1).all() and (tokens[:, -1] == 6).all() and (tokens[:, :-1] < 6).all()
    places = marked.argmax(axis=1)
    assert np.bincount(places, minlength=9)[:4].min() > 600 and places.max() == 3
    assert np.array_equal(targets[:, -1], tokens[np.arange(3000), places] - 3)
    assert (targets[:, :-1] == IGNORE).all()
    one = Retrieval(seq_len=4, symbols=3).oracle(np.array([[4, 0, 2, 6]]))
    assert one.tolist() == [[IGNORE] * 4 + [1]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seq_len": 3}, "data.seq_len: 3 is too short for retrieval; give at least 4"),
        ({"symbols": 1}, "data.symbols: 1 leaves retrieval nothing to remember; give at least 2"),
        ({"vocab_size": 5}, "data.vocab_size: 5 is not that of retrieval; leave it out or set 17"),
        ({"path": "x"}, "data.path: 'x' is not read by retrieval; set data.name to text or npy"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ValueError) as error:
        load_data(DataConfig(name="retrieval", **fields))
    assert str(error.value) == message
