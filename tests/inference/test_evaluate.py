"""evaluate() is a plain loop over sequences, however they are batched."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import naive
from naive import assert_close, batch, models
from retain.config import IGNORE
from retain.data.batches import StreamData
from retain.data.contexts import continued
from retain.inference.evaluate import _Spread, batch_for, evaluate

TIMES = {"seconds", "tokens_per_second"}


@pytest.fixture(params=["rms", "batch"])
def both(request):
    teacher, rnn = models(norm=request.param)
    with torch.no_grad():
        rnn.m_0.copy_(teacher.empty_memory())
    return teacher, rnn


def data(size=10):
    """As `batch`, with no target at all at t = 0 and t = 3."""
    found = batch(size)
    found["targets"][:, [0, 3]] = IGNORE
    return found


def split(data, *sizes):
    return [dict(zip(data, pair, strict=True)) for pair in zip(*(x.split(sizes) for x in data.values()), strict=True)]


def close(fast, slow):
    assert fast.keys() == slow.keys()
    for key, value in slow.items():
        if not isinstance(value, list):
            fast[key], value = [fast[key]], [value]
        assert [v is None for v in fast[key]] == [v is None for v in value], key
        assert_close([v or 0 for v in fast[key]], [v or 0 for v in value], 1e-5)


def test_evaluate_equals_naive(both):
    teacher, rnn = both
    result = evaluate(rnn, teacher, [data()])
    slow = naive.evaluate(rnn, teacher.eval(), data())
    assert result.keys() - slow.keys() == TIMES
    assert 0 < slow["accuracy"] < 1 and slow["drift"] > 1e-3
    assert slow["bits_by_position"][0] is None and slow["bits_by_position"][3] is None
    close({k: v for k, v in result.items() if k not in TIMES}, slow)


@pytest.mark.parametrize("sizes", [(5, 5), (7, 3), (1,) * 10, (9, 1)], ids=str)
def test_batches_do_not_matter(both, sizes):
    teacher, rnn = both
    whole, parts = evaluate(rnn, teacher, [data()]), evaluate(rnn, teacher, iter(split(data(), *sizes)))
    close(*({k: v for k, v in x.items() if k not in TIMES} for x in (parts, whole)))


@pytest.mark.parametrize("dtype, mean", [(torch.float64, 1e7), (torch.float32, 100.0), (torch.float32, 0.0)])
@pytest.mark.parametrize("sizes", [(10,), (5, 5), (7, 3), (1,) * 10, (9, 1)], ids=str)
def test_the_spread_of_values_far_from_zero_is_exact(dtype, mean, sizes):
    """Apple's GPUs have no more than float32."""
    values, spread = (mean + 0.1 * torch.randn(10, 3, 2, 2, dtype=torch.float64)).to(dtype), _Spread()
    which = torch.arange(3) < torch.tensor([3, 2, 1, 3, 2, 1, 3, 2, 2, 3])[:, None]
    for part, some in zip(values.split(sizes), which.split(sizes), strict=True):
        spread.add(part, some)
    exact = torch.stack([values[which[:, t], t].double().var(0, correction=0) for t in range(3)])
    assert_close(spread.variance() / exact, torch.ones(3, 2, 2), 1e-3)


def test_drift_is_relative_to_the_variance_of_a_memory_far_from_zero_too(both):
    teacher, rnn = both
    encode = teacher.eval().encode
    teacher.encode = lambda tokens, kept=None: encode(tokens) + 1e7
    slow = naive.evaluate(rnn, teacher, data())
    found = evaluate(rnn, teacher, split(data(), 5, 5))
    for key in ("relative_drift", "relative_drift_last"):
        assert found[key] == pytest.approx(slow[key], rel=1e-5)


def test_every_target_counts_once_whatever_its_batch():
    # All targets of the second batch are IGNORE but one: a mean of the batches' means would weigh it as half.
    rnn, one = models()[1], data()
    one["targets"][5:] = IGNORE
    one["targets"][9, 2] = 1
    result = evaluate(rnn, None, split(one, 5, 5))
    assert result["tokens"] == int((one["targets"] != IGNORE).sum())
    assert_close(result["bits_per_token"], naive.evaluate(rnn, models()[0].eval(), one)["bits_per_token"])


def test_ignored_targets_never_matter():
    rnn, some = models()[1], data()
    logits = rnn(some["tokens"])[0]
    right = torch.cat([some["targets"][:, :1], logits.argmax(-1)], 1)
    masked = right.masked_fill(some["targets"] == IGNORE, IGNORE)
    assert evaluate(rnn, None, [some | {"targets": masked}])["accuracy"] == 1
    nothing = evaluate(rnn, None, [some | {"targets": torch.full_like(masked, IGNORE)}])
    assert nothing["tokens"] == 0 and nothing["bits_per_token"] == 0 and nothing["accuracy"] == 0
    assert nothing["bits_by_position"] == [None] * 7


def test_uniform_predictions_cost_log_v():
    teacher, rnn = models()
    with torch.no_grad():
        rnn.readout.head.weight.zero_()
        rnn.readout.head.bias.zero_()
    assert_close(evaluate(rnn, teacher, [data()])["bits_per_token"], math.log2(naive.VOCAB))


def test_a_memory_that_is_the_teachers_does_not_drift(both):
    teacher, rnn = both
    labels = teacher.eval().encode(data()["tokens"]).detach()
    rnn.rollout = lambda tokens, memory: labels[:, 1:]
    exact = evaluate(rnn, teacher, [data()])
    assert exact["drift"] < 1e-12 and exact["relative_drift"] < 1e-12 and exact["drift_last"] < 1e-12
    # One that is the mean of the teacher's over the sequences says nothing: 1 by definition.
    rnn.rollout = lambda tokens, memory: labels[:, 1:].mean(0).expand(len(tokens), -1, -1, -1)
    useless = evaluate(rnn, teacher, [data()])
    assert_close([useless["relative_drift"], useless["relative_drift_last"]], [1.0, 1.0], 1e-5)
    assert_close(useless["relative_drift_by_position"][1:], [1.0] * 6, 1e-5)


def test_where_there_is_no_variance_relative_drift_is_null(both):
    teacher, rnn = both
    same = {key: value.repeat(3, 1) for key, value in data(1).items()}  # its variance is rounding error
    result = evaluate(rnn, teacher, [same])
    assert result["relative_drift"] is None
    assert result["relative_drift_last"] is None and result["relative_drift_by_position"] == [None] * 7
    assert result["drift"] > 0
    json.dumps(result, allow_nan=False)


def test_without_a_teacher_there_is_no_drift(both):
    teacher, rnn = both
    alone, compared = evaluate(rnn, None, [data()]), evaluate(rnn, teacher, [data()])
    assert alone.keys() == compared.keys()
    for key, value in alone.items():
        if "teacher" in key or "drift" in key:
            assert value is None
        elif key not in TIMES:
            assert value == compared[key]
    json.dumps(compared, allow_nan=False)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_no_trace(training):
    teacher, rnn = (m.train(training) for m in models())
    before = {k: v.clone() for m in (teacher, rnn) for k, v in m.state_dict().items()}
    evaluate(rnn, teacher, [data()])
    assert rnn.training == teacher.training == training
    assert_close({k: v for m in (teacher, rnn) for k, v in m.state_dict().items()}, before)
    assert all(p.grad is None for p in rnn.parameters())


def test_times_are_positive():
    result = evaluate(models()[1], None, [data()])
    assert result["seconds"] > 0
    assert_close(result["tokens_per_second"], 60 / result["seconds"])


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="evaluate: the split holds no sequence"):
        evaluate(models()[1], None, [])


def test_memories_are_read_out_some_at_a_time(both, monkeypatch):
    teacher, rnn = both
    whole = evaluate(rnn, teacher, [batch(3)])
    read, sizes = type(rnn.readout).forward, []
    monkeypatch.setattr(
        type(rnn.readout), "forward", lambda self, memory: sizes.append(len(memory)) or read(self, memory)
    )
    for name, value in (("MEMORIES", 4), ("LOGITS", 4 * rnn.vocab_size)):
        with monkeypatch.context() as patched:
            patched.setattr(f"retain.inference.evaluate.{name}", value)
            sizes.clear()
            parts = evaluate(rnn, teacher, [batch(3)])
        assert max(sizes) == 4
        for score in ("bits_per_token", "teacher_bits_per_token", "accuracy", "tokens"):
            assert parts[score] == pytest.approx(whole[score], rel=1e-6)


@pytest.mark.parametrize(
    "seq_len, vocab, memory, size",
    [(64, 256, 256, 256), (63, 2**14, 4, 64), (9999, 50_257, 4, 1), (63, 4, 2**14, 64), (99_999, 9, 9, 74)],
)
def test_large_vocabularies_and_memories_are_read_in_smaller_batches(seq_len, vocab, memory, size):
    data, rnn = SimpleNamespace(seq_len=seq_len, vocab_size=vocab), SimpleNamespace(m_0=torch.zeros(memory))
    assert batch_for(data, rnn) == size


def test_an_rnn_that_runs_away_gives_null_for_its_drift(both):
    teacher, rnn = both
    rnn.m_0.data.fill_(math.inf)
    found = evaluate(rnn, teacher, [data()])
    assert found["drift"] is found["drift_last"] is found["relative_drift"] is None


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_memory_that_is_carried_over_windows_is_that_of_the_whole_text(both, batch_size):
    """The slow twin reads each row of windows in one go, from where it begins."""
    _, rnn = both
    text = torch.randint(naive.VOCAB, (7 * 40 + 3,)).numpy()
    data = StreamData({"validation": text}, vocab_size=naive.VOCAB, seq_len=6, info={})
    carried = continued(data, data, 1, teaches=False, live=False)
    found = evaluate(rnn, None, carried.windows("validation", batch_size))
    nats, rows = 0.0, min(batch_size, 41 // 16)
    for row in torch.from_numpy(text).split(7 * -(-41 // rows)):
        logits, _ = rnn.eval()(row[None, :-1])
        first = rnn.readout(rnn.init_memory(1))[:, None]
        said = torch.cat([first, logits], 1)[0]
        nats += torch.nn.functional.cross_entropy(said, row, reduction="sum").item()
    assert found["tokens"] == len(text)
    assert_close(found["bits_per_token"], nats / len(text) / math.log(2), 1e-5)
    cold = evaluate(rnn, None, data.windows("validation", batch_size))
    assert cold["bits_per_token"] != pytest.approx(found["bits_per_token"], rel=1e-3)
