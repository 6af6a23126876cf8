"""A memory of a few levels: exactly on the grid, kept by a cell that keeps it, and the gradient of a tanh."""

import pytest
import torch

import naive
from naive import assert_close, batch, models
from retain.errors import UserError
from retain.inference.evaluate import evaluate
from retain.inference.memory_use import MemoryUse
from retain.model.rnn import check_alike
from retain.objectives import SMT
from retain.ops.fsq import number_levels, quantise, unbound

LEVELS = [2, 3, 4, 5, 8, 33, 256]


@pytest.mark.parametrize("levels", LEVELS)
def test_values_and_gradients_equal_the_nearest_level(levels):
    x = (3 * torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    fast, slow = quantise(x, levels), naive.nearest_level(x, levels)
    assert_close(fast, slow)
    assert_close(*(torch.autograd.grad((y * torch.arange(500)).sum(), x)[0] for y in (fast, slow)))
    with torch.no_grad():
        assert torch.equal(quantise(x, levels), fast)
    assert len(fast.unique()) <= levels and fast.min() == -1 and fast.max() == 1


@pytest.mark.parametrize("levels", LEVELS)
def test_a_memory_that_is_kept_stays_as_it_is(levels):
    grid = quantise(torch.linspace(-9, 9, 5000), levels).unique()
    assert len(grid) == levels
    middle = unbound(grid, levels)
    assert middle.isfinite().all() and torch.equal(quantise(middle, levels), grid)
    assert number_levels(grid, levels).tolist() == list(range(levels))
    off = 0.2 * 2 / (levels - 1)  # a fifth of a level: rounding takes it away
    assert torch.equal(
        quantise((middle.tanh() + off * torch.randn(levels).sign()).clamp(-0.999, 0.999).atanh(), levels), grid
    )


@pytest.mark.parametrize("cell", ["gated", "transformer", "gru"])
def test_teacher_and_rnn_are_on_the_grid_and_m_0_too(cell):
    teacher, rnn = models(cell=cell, norm="fsq")
    rnn, tokens = rnn.float(), batch(3, 20)["tokens"]
    grid = torch.linspace(-1, 1, 5)
    with torch.no_grad():
        for memory in (
            rnn.rollout(tokens, rnn.init_memory(3)),
            rnn.init_memory(2),
            teacher.float().eval().encode(tokens),
        ):
            assert torch.isin(memory, grid).all()
        SMT(teacher, rnn, naive.smt_config(), 3).finish()
        assert torch.equal(rnn.init_memory(1)[0], teacher.empty_memory())


def test_teacher_and_rnn_of_other_levels_are_refused():
    teacher, rnn = models(norm="fsq")
    rnn.levels = 7
    with pytest.raises(UserError, match="memory.levels: the teacher has 5, the RNN 7"):
        check_alike(teacher, rnn)


def test_bits_that_are_used():
    use = MemoryUse(3)
    memory = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]).view(2, 2, 1, 2)
    use.add(memory, torch.ones(2, 2, dtype=torch.bool))
    use.add(torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, dtype=torch.bool))  # padding
    found = use.results()
    assert found.pop("memory_bits") == pytest.approx(2 * 1.58496, abs=1e-4)
    # Both numbers say the same bit.
    expected = {"memory_entropy_by_number": 2.0, "memory_entropy": 1.0, "memories": 4, "different_memories": 2}
    assert found == pytest.approx(expected)
    teacher, rnn = models(norm="fsq")
    scores = evaluate(rnn.eval(), teacher.eval(), [batch(4, 6)])
    assert scores["memories"] == 4 * 7 and 0 < scores["memory_entropy"] <= scores["memory_entropy_by_number"]
    assert "memory_bits" not in evaluate(models()[1], None, [batch()])
