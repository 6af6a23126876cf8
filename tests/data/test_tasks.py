"""Memory tasks: the oracle answers them, guessing scores chance, evaluation sequences are fixed and apart."""

import os
import sys
import tracemalloc

import numpy as np
import pytest
import torch

import retain
from oracles import oracle
from retain.config import TASK_DATA, TASK_SIZES, data_config
from retain.data import IGNORE, SPLITS, load_data
from retain.data.batches import make_generator
from retain.data.tasks import TASKS, build_task
from retain.data.tasks.recall import MQAR, Copy, KeysValues, Retrieval, SelectiveCopy, draw_distinct
from retain.data.tasks.tracking import S3, S5, Dyck, Modular, Parity, Stack

SIZES = {
    "retrieval": [{"seq_len": 4, "symbols": 2}, {"seq_len": 17, "symbols": 30}],
    "copy": [
        {"seq_len": 2, "copy_len": 1},
        {"seq_len": 10, "copy_len": 5, "reverse": True},
        {"seq_len": 21, "copy_len": 3, "symbols": 30},
    ],
    "stack": [
        {"seq_len": 3, "depth": 1},
        {"seq_len": 30, "depth": 2, "symbols": 2},
        {"seq_len": 300, "depth": 299},
        {"seq_len": 200, "depth": 7, "symbols": 9},
    ],
    "keys_values": [
        {"seq_len": 4, "pairs": 1, "string_len": 1},
        {"seq_len": 18, "pairs": 8, "string_len": 1},
        {"seq_len": 60, "pairs": 5, "string_len": 4, "symbols": 30},
        {"seq_len": 100, "pairs": 1, "string_len": 20},
    ],
    "modular": [
        {"seq_len": 5, "symbols": 2},
        {"seq_len": 24, "symbols": 7},
        {"seq_len": 33, "symbols": 12},
        {"seq_len": 20, "symbols": 30},
    ],
    "parity": [{"seq_len": 1}, {"seq_len": 100}],
    "s3": [{"seq_len": 1}, {"seq_len": 33}],
    "s5": [{"seq_len": 1}, {"seq_len": 20}],
    "dyck": [
        {"seq_len": 2, "depth": 1},
        {"seq_len": 100, "depth": 2, "symbols": 2},
        {"seq_len": 300, "depth": 299},
        {"seq_len": 150, "depth": 7, "symbols": 9},
    ],
    "mqar": [
        {"seq_len": 4, "pairs": 1},
        {"seq_len": 33, "pairs": 8, "symbols": 8},
        {"seq_len": 40, "pairs": 3, "symbols": 30},
    ],
    "selective_copy": [{"seq_len": 2, "copy_len": 1}, {"seq_len": 12, "copy_len": 6}, {"seq_len": 50, "copy_len": 4}],
}
CASES = [(name, size) for name in TASKS for size in ({}, *SIZES[name])]


def config_of(name, **size):
    return data_config(name=name, **size)


@pytest.fixture(params=TASKS, scope="module")
def name(request):
    return request.param


def test_the_config_knows_every_task_and_every_knob():
    assert set(TASKS) == set(TASK_DATA)
    assert {name: {"seq_len", *TASK_SIZES[name]} for name in TASKS} == {
        name: set(task.knobs) for name, task in TASKS.items()
    }
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize(("name", "size"), CASES)
def test_oracle_knows_every_answer(name, size):
    task = build_task(config_of(name, **size))
    length = size.get("seq_len", 64)
    assert task.seq_len == length
    for batch in range(5):
        tokens, targets = task.generate(make_generator(0, batch), 40)
        assert tokens.shape == (40, length) and targets.shape == (40, length + 1)
        assert tokens.dtype == targets.dtype == np.int64
        assert tokens.min() >= 0 and tokens.max() < task.vocab_size == len(task.words)
        answered = targets != IGNORE
        assert (targets[:, 0] == IGNORE).all() and answered.any()
        assert targets[answered].min() >= 0 and targets[answered].max() < len(task.answers) <= task.vocab_size
        assert np.array_equal(oracle(task, tokens), targets)


def test_the_oracle_sees_a_wrong_answer(name):
    """An oracle that only repeated what it is given could not tell."""
    task = build_task(config_of(name))
    tokens, targets = task.generate(make_generator(0, 0), 50)
    assert not np.array_equal(oracle(task, tokens)[:25], targets[25:])


def test_every_token_and_answer_comes_up(name):
    task = build_task(config_of(name))
    tokens, targets = task.generate(make_generator(2, 0), 3000)
    assert set(np.unique(tokens)) == set(range(task.vocab_size))
    assert set(np.unique(targets)) == {IGNORE, *range(len(task.answers))}
    assert len(set(task.words)) == len(task.words) and len(set(task.answers)) == len(task.answers)


@pytest.mark.parametrize(
    ("name", "size"), [(n, {}) for n in TASKS] + [("dyck", {"symbols": 2}), ("mqar", {"symbols": 8})]
)
def test_chance_is_what_guessing_scores(name, size):
    task = build_task(config_of(name, **size))
    _, targets = task.generate(make_generator(1, 0), 20_000)
    answers = targets[targets != IGNORE]
    best = np.unique(answers, return_counts=True)[1].max() / len(answers)
    assert best == pytest.approx(task.chance, rel=0.05)


def test_batches_follow_from_seed_step_and_rank(name):
    data, again = load_data(config_of(name)), load_data(config_of(name))
    seen = []
    for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        batch, same = data.batch(*key, 8), again.batch(*key, 8)
        assert torch.equal(batch["tokens"], same["tokens"]) and torch.equal(batch["targets"], same["targets"])
        seen.append(batch["tokens"])
    for i, tokens in enumerate(seen):
        assert all(not torch.equal(tokens, other) for other in seen[:i])


def test_evaluation_sequences_are_fixed_and_apart(name):
    config = config_of(name)
    data, again = load_data(config), load_data(config)
    assert data.answers and data.chance == build_task(config).chance and data.info == again.info
    splits = {s: torch.cat([b["tokens"] for b in data.windows(s, 500)]) for s in SPLITS}
    for split, tokens in splits.items():
        assert len(tokens) == data.count(split) == 2048
        assert torch.equal(tokens, torch.cat([b["tokens"] for b in again.windows(split, 300)]))
    trained = torch.cat([data.batch(seed, step, 0, 2048)["tokens"] for seed in (0, 1) for step in range(3)])
    seen = [set(map(tuple, tokens.tolist())) for tokens in (*splits.values(), trained)]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_a_longer_sequence_has_the_same_vocabulary(name):
    short, long = (build_task(config_of(name, seq_len=length)) for length in (64, 512))
    assert (short.vocab_size, short.words, short.answers) == (long.vocab_size, long.words, long.answers)


OWN = os.path.join(os.path.dirname(retain.__file__), "")


def lines_run(function):
    """Lines of Python that a call runs in retain's own files."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.startswith(OWN):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def test_no_python_loop_over_batch_and_time(name):
    """As many lines of Python for a large batch of long sequences as for a small one of short ones."""
    small, large = (build_task(config_of(name, seq_len=length)) for length in (64, 256))
    lines = lines_run(lambda: small.generate(make_generator(0), 2))
    assert 0 < lines == lines_run(lambda: large.generate(make_generator(0), 200)) < 400


def test_generation_holds_few_bytes_a_token_however_long(name):
    """With the lines of Python above this bounds its work on any machine: nothing is of the length squared."""

    def bytes_per_token(length):
        task = build_task(config_of(name, seq_len=length))
        tracemalloc.start()
        try:
            task.generate(make_generator(0), 8)
            return tracemalloc.get_traced_memory()[1] / (8 * length)
        finally:
            tracemalloc.stop()

    assert bytes_per_token(4096) <= bytes_per_token(64) < 100


@pytest.mark.parametrize("name", ["copy", "parity", "mqar"])
def test_label_noise_spoils_training_targets_alone(name):
    clean, noisy = load_data(config_of(name)), load_data(config_of(name, label_noise=0.3))
    batch, spoilt = clean.batch(0, 5, 0, 2000), noisy.batch(0, 5, 0, 2000)
    assert torch.equal(batch["tokens"], spoilt["tokens"])
    answered = batch["targets"] != IGNORE
    assert torch.equal(answered, spoilt["targets"] != IGNORE)
    wrong = (batch["targets"] != spoilt["targets"])[answered].float().mean().item()
    n = len(noisy.task.answers)  # a random answer may be the right one
    assert wrong == pytest.approx(0.3 * (n - 1) / n, rel=0.05)
    assert spoilt["targets"][answered].min() >= 0 and spoilt["targets"].max() < n
    for split in SPLITS:
        for one, other in zip(clean.windows(split, 2048), noisy.windows(split, 2048), strict=True):
            assert torch.equal(one["targets"], other["targets"])
    assert clean.info == noisy.info


@pytest.mark.parametrize(
    ("name", "shortest", "sizes"),
    [
        ("retrieval", 8, [(64, None), (32, None), (16, None), (8, None)]),
        ("stack", 16, [(64, None), (32, None), (16, None)]),
        ("stack", 17, [(64, None), (32, None)]),
        ("selective_copy", 8, [(64, 16), (32, 8), (16, 4), (8, 2)]),
        ("keys_values", 8, [(64, 8), (32, 4), (16, 2), (8, 1)]),
    ],
)
def test_shorter_sequences_are_the_same_task_with_less_to_remember(name, shortest, sizes):
    data = load_data(config_of(name, min_seq_len=shortest))
    amount = data.task.amount
    assert [(task.seq_len, amount and getattr(task, amount)) for task in data.lengths] == sizes
    met = set()
    for step in range(40):
        batch, same = data.batch(0, step, 0, 5), data.batch(0, step, 0, 5)
        length = batch["tokens"].shape[1]
        met.add(length)
        (task,) = (task for task in data.lengths if task.seq_len == length)
        assert np.array_equal(oracle(task, batch["tokens"].numpy()), batch["targets"].numpy())
        assert all(torch.equal(values, same[key]) for key, values in batch.items())
        # Processes wait for each other at every step: each has other sequences, of one length.
        other = data.batch(0, step, 1, 5)
        assert other["tokens"].shape == batch["tokens"].shape and not torch.equal(other["tokens"], batch["tokens"])
    assert met == {length for length, _ in sizes}
    plain = load_data(config_of(name))
    assert data.info == plain.info and data.vocab_size == plain.vocab_size
    for split in SPLITS:
        for one, other in zip(data.windows(split, 2048), plain.windows(split, 2048), strict=True):
            assert torch.equal(one["tokens"], other["tokens"])


def test_retrieval_by_its_definition():
    tokens, targets = Retrieval(seq_len=9, symbols=3).generate(make_generator(0, 0), 3000)
    marked = (tokens >= 3) & (tokens < 6)
    assert (marked.sum(axis=1) == 1).all() and (tokens[:, -1] == 6).all() and (tokens[:, :-1] < 6).all()
    places = marked.argmax(axis=1)
    assert np.bincount(places, minlength=9)[:4].min() > 600 and places.max() == 3
    assert np.array_equal(targets[:, -1], tokens[np.arange(3000), places] - 3)
    assert (targets[:, :-1] == IGNORE).all()
    one = oracle(Retrieval(seq_len=4, symbols=3), np.array([[4, 0, 2, 6]]))
    assert one.tolist() == [[IGNORE] * 4 + [1]]


def answers_of(task, *tokens):
    """The oracle's targets of one sequence, None where there is none."""
    (targets,) = oracle(task, np.array([tokens])).tolist()
    return [None if t == IGNORE else t for t in targets]


def test_the_oracles_by_hand():
    nothing = None
    copied = (0, 3, 1, 4, 4, 5, 4, 4)
    assert answers_of(Copy(8, copy_len=3), *copied) == [nothing] * 6 + [0, 3, 1]
    assert answers_of(Copy(8, copy_len=3, reverse=True), *copied) == [nothing] * 6 + [1, 3, 0]
    assert answers_of(SelectiveCopy(7, copy_len=2), 4, 2, 4, 1, 4, 5, 4) == [nothing] * 6 + [2, 1]
    stack = Stack(6, symbols=3, depth=2)
    assert answers_of(stack, 0, 2, 3, 1, 3, 3) == [nothing, nothing, nothing, 2, nothing, 1, 0]
    pairs = KeysValues(13, symbols=3, pairs=2)
    assert answers_of(pairs, 0, 1, 2, 2, 1, 0, 1, 2, 3, 4, 1, 0, 3) == [nothing] * 12 + [1, 2]
    # y = 3 x + 1 mod 8: x = 2 and 4 tell 3 times any even difference, x = 3 then all.
    modular = Modular(11, symbols=8)
    assert answers_of(modular, 2, 7, 4, 5, 6, 3, 3, 2, 5, 0, 1) == (
        [nothing] * 5 + [3, nothing, nothing, nothing, 0, nothing, 4]
    )
    assert answers_of(Parity(5), 0, 1, 1, 1, 0) == [nothing, 0, 1, 0, 1, 1]
    s3 = S3(3)
    number = {word: i for i, word in enumerate(s3.words)}
    # 1→2→3→1, then 1 and 2 exchanged: 1→2→1, 2→3→3, 3→1→2; then 2 and 3 exchanged: the identity.
    assert answers_of(s3, number["231"], number["213"], number["132"]) == [
        nothing,
        *(number[word] for word in ("231", "132", "123")),
    ]
    assert answers_of(Dyck(6, symbols=2, depth=2), 0, 1, 3, 2, 1, 3) == [nothing, 0, 1, 0, nothing, 1, nothing]
    mqar = MQAR(9, symbols=4, pairs=2)
    assert answers_of(mqar, 5, 1, 7, 0, 7, 3, 6, 2, 5) == [nothing] * 5 + [0, nothing, nothing, nothing, 1]


@pytest.mark.parametrize("task", [Stack(200, symbols=3, depth=5), Dyck(200, symbols=3, depth=5)])
def test_stacks_reach_their_depth_and_no_more(task):
    tokens, targets = task.generate(make_generator(0), 500)
    push = tokens < task.symbols
    heights = np.cumsum(np.where(push, 1, -1), axis=1)
    assert heights.min() == 0 and heights.max() == 5 and push[:, 0].all()
    inside = (heights[:, :-1] > 0) & (heights[:, :-1] < 5)
    assert push[:, 1:][inside].mean() == pytest.approx(0.5, abs=0.01)
    assert np.bincount(tokens[push]).std() / push.sum() < 0.01
    answered = ~push if isinstance(task, Stack) else heights > 0
    assert np.array_equal(targets[:, 1:] != IGNORE, answered)


def test_copies_stand_where_they_should():
    tokens, targets = Copy(20, copy_len=5).generate(make_generator(0), 100)
    assert (tokens[:, 5:15] == 4).all() and (tokens[:, 15] == 5).all() and (tokens[:, 16:] == 4).all()
    assert np.array_equal(targets[:, 16:], tokens[:, :5])
    backwards = Copy(20, copy_len=5, reverse=True).generate(make_generator(0), 100)
    assert np.array_equal(backwards[0], tokens) and np.array_equal(backwards[1][:, 16:], tokens[:, 4::-1])
    tokens, _ = SelectiveCopy(20, copy_len=5).generate(make_generator(0), 6000)
    assert (tokens[:, 15] == 5).all() and (tokens[:, 16:] == 4).all()
    assert np.allclose((tokens[:, :15] < 4).mean(axis=0), 1 / 3, atol=0.03)


def test_keys_are_all_different_and_all_asked_for():
    task = KeysValues(24, symbols=3, pairs=5, string_len=2)
    tokens, _ = task.generate(make_generator(0), 2000)
    keys = tokens[:, :20].reshape(2000, 5, 4)[..., :2] @ np.array([1, 3])
    assert all(len(set(row)) == 5 for row in keys.tolist()) and set(keys.ravel().tolist()) == set(range(9))
    asked = tokens[:, 21:23] @ np.array([1, 3])
    assert np.allclose((keys == asked[:, None]).mean(axis=0), 0.2, atol=0.04)


def test_mqar_asks_every_key_once_and_soon_rather_than_late():
    task = MQAR(64, symbols=32, pairs=4)
    tokens, targets = task.generate(make_generator(0), 4000)
    keys, values = tokens[:, :8:2], tokens[:, 1:8:2]
    assert keys.min() >= 32 and values.max() < 32
    assert all(len(set(row)) == 4 for row in (*keys.tolist(), *values.tolist()))
    asked = targets[:, 1:] != IGNORE
    assert (asked.sum(axis=1) == 4).all() and not asked[:, :8].any() and not asked[:, 9::2].any()
    assert np.array_equal(np.sort(tokens[asked].reshape(-1, 4)), np.sort(keys))
    where = asked[:, 8::2].mean(axis=0)
    # The first key's question is drawn first: at place i with probability (i + 1)^-0.99 over their sum.
    early = (tokens[:, 8] == keys[:, 0]).mean()
    assert early == pytest.approx(1 / sum((i + 1) ** -0.99 for i in range(28)), abs=0.03)
    assert where[0] > 2 * where[3] > 4 * where[27] > 0


def test_modular_targets_begin_with_what_the_pairs_tell():
    """With a prime modulus two different x tell everything, and one tells only itself."""
    task = Modular(20, symbols=7)
    tokens, targets = task.generate(make_generator(0), 500)
    x, asked = tokens[:, ::2], targets[:, 1::2] != IGNORE
    for row, answers in zip(x.tolist(), asked.tolist(), strict=True):
        for i, answer in enumerate(answers):
            before = set(row[:i])
            assert answer == (len(before) > 1 or row[i] in before)
    assert (targets[:, ::2] == IGNORE).all()


def test_s5_is_the_whole_group():
    task = S5(4)
    assert task.vocab_size == 120 and task.words[0] == "12345"
    tokens, _ = task.generate(make_generator(0), 30_000)
    assert np.bincount(tokens.ravel(), minlength=120).min() > 800
    # Consecutive tokens are independent: every pair with one half of the group is as likely as any other.
    halves = tokens >= 60
    assert np.allclose([(halves[:, i] & halves[:, i + 1]).mean() for i in range(3)], 0.25, atol=0.01)


def test_distinct_numbers_are_drawn_fairly():
    rows = np.sort(draw_distinct(make_generator(0), 30_000, 2, 5), axis=1)
    sets, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(sets) == 10 and (sets[:, 0] < sets[:, 1]).all()
    assert counts.min() > 2800 and counts.max() < 3200
    assert np.array_equal(np.sort(draw_distinct(make_generator(0), 3, 6, 6), axis=1), np.tile(np.arange(6), (3, 1)))


# Hidden states, for colouring memories


def said_slowly(name, task, row):
    """The hidden state after each token of one sequence, by doing what the tokens say."""
    found, stack, state, string, asked = [], [], tuple(range(getattr(task, "points", 0))), 0, 0
    for token in row:
        if name == "stack":
            stack.pop() if token == task.symbols else stack.append(token)
            found.append(str(len(stack)))
        elif name == "dyck":
            stack.append(token) if token < task.symbols else stack.pop()
            found.append(str(len(stack)))
        elif name == "parity":
            stack.append(token)
            found.append("odd" if stack.count(1) % 2 else "even")
        elif name in ("s3", "s5"):
            state = tuple(task.permutations[token][i] for i in state)
            found.append("".join(str(i + 1) for i in state))
        elif name in ("copy", "selective_copy"):
            # After the query the first symbol is said, after each later token the one before it is no longer needed.
            string += token < task.symbols
            asked += token == task.symbols + 1 or asked > 0
            found.append(str(string - max(asked - 1, 0)))
    return found


NAMES = {
    "stack": "stack depth", "dyck": "open brackets", "parity": "parity", "s3": "product", "s5": "product",
    "copy": "symbols to say", "selective_copy": "symbols to say",
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), [(n, s) for n, s in CASES if n in NAMES])
def test_the_hidden_state_is_that_of_following_every_token(name, size):
    data = load_data(data_config(name=name, **size)) if size else load_data(data_config(name=name, seq_len=64))
    tokens = data.batch(3, 0, 0, 20)["tokens"].numpy()
    words, states = data.task.hidden(tokens)
    assert words == NAMES[name] and states.shape == tokens.shape
    assert states.astype(str).tolist() == [said_slowly(name, data.task, row) for row in tokens.tolist()]


def test_the_last_symbol_to_say_is_still_needed_at_the_end():
    states = load_data(data_config(name="copy", seq_len=8, copy_len=3)).task.hidden(
        np.array([[0, 1, 2, 4, 4, 5, 4, 4]])
    )
    assert states[1].tolist() == [[1, 2, 3, 3, 3, 3, 2, 1]]


def test_modular_draws_every_map_as_often():
    tokens, _ = Modular(5, symbols=5).generate(make_generator(0), 20_000)
    x, y = tokens[:, 0:4:2], tokens[:, 1:4:2]
    apart = x[:, 0] != x[:, 1]
    inverse = np.array([0, 1, 3, 2, 4])  # modulo 5
    w = (y[:, 1] - y[:, 0]) * inverse[(x[:, 1] - x[:, 0]) % 5] % 5
    counts = np.unique((5 * w + (y[:, 0] - w * x[:, 0]) % 5)[apart], return_counts=True)[1]
    assert len(counts) == 25 and counts.min() > 0.8 * counts.mean()
