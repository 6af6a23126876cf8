"""What fills up a short sequence counts in no loss: batch["real"] says which tokens it is."""

import pytest
import torch

import naive
from naive import assert_close, gradients, models, padded, smt_config
from retain.config import IGNORE, DMTConfig
from retain.inference.evaluate import evaluate
from retain.model.memory_norm import MemoryNorm, counted_memories
from retain.objectives import BPTT, DMT, SMT, dynamics_loss, uniformity_loss
from retain.training.phases import cut_part

ENCODERS = ("state", "register", "window")
ALONE = {"horizon": None, "horizon_growth": 0.0}

OBJECTIVES = {
    "smt": lambda t, r: SMT(t, r, smt_config(lambda_distill=0.4), 3),
    "smt, on its own memories": lambda t, r: SMT(t, r, smt_config(on_policy=0.5), 3),
    "smt, windows in chunks": lambda t, r: SMT(
        t, r, smt_config(bptt_window=2, num_chunks=3, decodes_per_sequence=2), 0
    ),
    "smt, some steps": lambda t, r: SMT(t, r, smt_config(steps_per_sequence=4), 3),
    "dmt": lambda t, r: DMT(t, r, DMTConfig(**ALONE, lambda_distill=0.3)),
    "dmt, unrolled": lambda t, r: DMT(t, r, DMTConfig(horizon=2, horizon_growth=0.0, bptt_window=3)),
    "dmt, some labels": lambda t, r: DMT(t, r, DMTConfig(horizon=4, horizon_growth=0.0, label_every=2)),
    "bptt": lambda t, r: BPTT(r, 2),
}


def found(objective, data, seed=0):
    """Losses and gradients."""
    torch.manual_seed(seed)
    losses = objective(data)
    return losses | gradients(losses["loss"], objective)


@pytest.mark.parametrize("norm", ["rms", "batch"])
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_in_the_padding_never_matters(name, kind, norm):
    """To the last bit, and the statistics of the norm as well."""
    both = []
    for fill in (0, None, 5):
        teacher, rnn = models(kind, "gated", norm, layers=1, future_len=0 if "chunks" in name else 3)
        both.append(found(OBJECTIVES[name](teacher, rnn), padded(fill=fill)) | dict(teacher.norm.state_dict()))
    assert both[0]["loss"].isfinite()
    for other in both[1:]:
        assert other.keys() == both[0].keys()
        for key, value in both[0].items():
            assert torch.equal(other[key], value), key


@pytest.mark.parametrize("name", OBJECTIVES)
def test_where_all_is_real_nothing_changes(name):
    both = []
    for real in (False, True):
        data = naive.batch(3)
        data |= {"real": torch.ones(3, 6, dtype=torch.bool)} if real else {}
        both.append(
            found(OBJECTIVES[name](*models(cell="gated", layers=1, future_len=0 if "chunks" in name else 3)), data)
        )
    assert_close(*both)


@pytest.mark.parametrize("norm", ["rms", "batch"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_smt_of_padded_sequences_equals_naive(kind, norm):
    objective = SMT(*models(kind, norm=norm), smt_config(), 3)
    fast = objective(padded())
    slow = naive.smt(objective.teacher, objective.rnn, kind, objective.config, padded(), 3)
    assert_close(fast, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_padded_sequences_in_chunks_equal_those_at_once(pieces):
    both = [found(SMT(*models(), smt_config(num_chunks=count), 3), padded()) for count in (1, pieces)]
    assert_close(*both)


@pytest.mark.parametrize("unroll", [1, 6])
def test_dmt_of_padded_sequences_equals_the_detached_loop(unroll):
    objective = DMT(*(both := models()), DMTConfig(**ALONE, bptt_window=unroll))
    fast, slow = objective(padded()), naive.dmt(*both, objective.config, padded())
    assert_close({name: fast[name] for name in slow}, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))
    labels, (real, _) = both[0].eval().encode(padded()["tokens"]), naive.real_of(padded())
    apart = [labels[real[:, t], t + 1] - labels[real[:, t], t + 1].mean(0) for t in range(6)]
    assert_close(fast["relative_drift"], fast["loss_dyn"].detach() / torch.cat(apart).square().mean())


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("bptt", "smt, windows in chunks")])
@pytest.mark.parametrize("norm", ["rms", "batch"])
def test_more_padding_leaves_the_dynamics_as_they_are(name, norm):
    """With the norm in evaluation mode. Where some steps begin is drawn from a wider range in a longer batch."""
    of_width = []
    for more in (0, 1, 5):
        data = padded(fill=0)
        filled = {"tokens": 0, "targets": IGNORE, "real": False}
        data = {key: torch.nn.functional.pad(data[key], (0, more), value=value) for key, value in filled.items()}
        teacher, rnn = models(cell="gated", norm=norm, layers=1)
        objective = OBJECTIVES[name](teacher, rnn)
        teacher.norm.eval()
        starts = range(1) if "some" not in name else range(60)
        of_width.append([dynamics(objective, data, seed) for seed in starts])
    for wider in of_width[1:]:
        assert all(min(abs(a - b) for b in wider) < 1e-9 for a in set(of_width[0]))


def dynamics(objective, data, seed):
    torch.manual_seed(seed)
    return objective(data)["loss_dyn"].item()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_of_nothing_but_padding_all_is_finite(name):
    teacher, rnn = models(cell="gated", layers=1, future_len=0 if "chunks" in name else 3)
    objective = OBJECTIVES[name](teacher, rnn)
    data = padded(lengths=(0, 0))
    data["targets"][:] = IGNORE
    for key, value in found(objective, data).items():
        assert value.isfinite().all(), key
    if name != "bptt":
        assert dynamics(objective, data, 0) == 0


def test_the_norm_learns_nothing_from_no_memory():
    norm, memory = MemoryNorm("batch", 2, 4), torch.randn(3, 5, 2, 4)
    none = torch.zeros(3, 5, dtype=torch.bool)
    assert norm(memory, none).isfinite().all() and norm.seen == 0
    assert torch.equal(norm.mean, torch.zeros(2, 4)) and torch.equal(norm.variance, torch.ones(2, 4))
    norm(memory, ~none)
    assert norm.seen == 1
    assert_close(norm.mean, memory.mean((0, 1)))
    assert_close(norm.variance, memory.var((0, 1), correction=0))


def test_which_memories_count():
    real = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    assert counted_memories(real).tolist() == [
        [True, True, True, False],
        [True, False, True, False],
        [True, False, False, False],
    ]


def test_losses_of_some_are_those_of_a_loop_over_them():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5, 2, 4, dtype=torch.float64).requires_grad_()
    which = torch.rand(3, 5) < 0.5
    fast, slow = dynamics_loss(a, b, which), naive.squared_error(zip(a[which], b[which], strict=True))
    assert_close(fast, slow)
    for x, y in zip(torch.autograd.grad(fast, (a, b)), torch.autograd.grad(slow, (a, b)), strict=True):
        assert_close(x, y)
    fast, slow = uniformity_loss(a, which=which), naive.uniformity_loss(a[which])
    assert_close(fast, slow)
    assert_close(torch.autograd.grad(fast, a)[0], torch.autograd.grad(slow, a)[0])
    assert dynamics_loss(a, b, torch.zeros(3, 5, dtype=torch.bool)) == 0
    for count in (0, 1):  # memory tokens: no pair
        alone = a[:1, :1, :1].detach().requires_grad_()
        loss = uniformity_loss(alone, which=torch.full((1, 1), bool(count)))
        assert loss == 0 and torch.autograd.grad(loss, alone)[0].isfinite().all()


def test_uniformity_draws_from_those_that_count():
    memory, which = torch.zeros(300, 1, 2), torch.zeros(300, dtype=torch.bool)
    memory[..., 0] = 1  # all alike but two, of which one counts
    memory[[7, 8], 0, 0] = -1
    which[[3, 4, 5, 7]] = True
    for sample in (4, 10, 512):
        assert_close(uniformity_loss(memory, sample, which), naive.uniformity_loss(memory[which]), 1e-5)
    drawn = torch.stack([uniformity_loss(memory, 2, which) for _ in range(200)])
    assert set(drawn.round().tolist()) == {0, -8}


def test_a_part_of_a_batch_has_its_part_of_the_padding():
    data = padded(9, (9, 4))
    for _ in range(30):
        part = cut_part(data, 4)
        start = int((data["tokens"].unfold(1, 4, 1) == part["tokens"][:, None]).all(-1).all(0).nonzero()[0])
        assert torch.equal(part["real"], data["real"][:, start : start + 4])
    assert "real" not in cut_part(naive.batch(2, 9), 4)


def evaluated(rnn, teacher, batches):
    result = evaluate(rnn, teacher, batches)
    return {key: value for key, value in result.items() if key not in ("seconds", "tokens_per_second")}


def flat(result):
    """Numbers in a row; None as -1."""
    values = [x for value in result.values() for x in (value if isinstance(value, list) else [value])]
    return torch.tensor([-1.0 if x is None else x for x in values], dtype=torch.float64)


@pytest.mark.parametrize("norm", ["rms", "batch"])
@pytest.mark.parametrize("lengths", [(6, 3, 1), (4, 4, 2), (5, 0, 0), (0, 0, 0)], ids=str)
def test_drift_is_over_what_real_tokens_made(norm, lengths):
    teacher, rnn = models(norm=norm)
    data = padded(lengths=lengths)
    data["targets"][:, 0] = 1
    result = evaluated(rnn, teacher, [data])
    if any(lengths):
        slow = naive.evaluate(rnn, teacher.eval(), data)
        assert result.keys() == slow.keys()
        for key, value in slow.items():
            assert_close(flat({key: result[key]}), flat({key: value}), 1e-5)
    else:
        assert result["drift"] is result["relative_drift"] is None
    longest = max(lengths)
    assert [x is None for x in result["drift_by_position"]] == [t > longest for t in range(7)]
    assert (result["drift_last"] is None) == (longest < 6)
    # However it is batched, and whatever stands behind.
    parts = [{key: value[i : i + 1] for key, value in padded(lengths=lengths, fill=4).items()} for i in range(3)]
    for part in parts:
        part["targets"][:, 0] = 1
    assert_close(flat(evaluated(rnn, teacher, parts)), flat(result), 1e-5)


def test_a_batch_without_padding_may_lack_the_word():
    teacher, rnn = models()
    short, whole = padded(lengths=(2, 3)), naive.batch(2, seed=1)
    said = whole | {"real": torch.ones(2, 6, dtype=torch.bool)}
    assert evaluated(rnn, teacher, [short, whole]) == evaluated(rnn, teacher, [short, said])
