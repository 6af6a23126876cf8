"""Eq. 2–4 against their loops, and at their edges."""

import math

import pytest
import torch

import naive
from naive import VOCAB, assert_close
from retain.config import IGNORE, DMTConfig, SMTConfig
from retain.objectives import BPTT, DMT, SMT, dynamics_loss, predictive_loss, uniformity_loss
from retain.objectives.losses import readout_losses, where_asked


def random_targets(*shape):
    targets = torch.randint(VOCAB, shape)
    targets[torch.rand(shape) < 0.3] = IGNORE
    return targets


def test_predictive_loss_equals_naive():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5, VOCAB, dtype=torch.float64, requires_grad=True)
    targets = random_targets(3, 4, 5)
    fast = predictive_loss(logits, targets)
    slow = naive.predictive_loss(logits.flatten(0, 2), targets.flatten())
    assert_close(fast, slow)
    assert_close(torch.autograd.grad(fast, logits)[0], torch.autograd.grad(slow, logits)[0])


def test_ignored_targets_never_matter():
    torch.manual_seed(0)
    logits = torch.randn(20, VOCAB, dtype=torch.float64, requires_grad=True)
    targets = random_targets(20)
    ignored = targets == IGNORE
    assert 0 < ignored.sum() < 20
    loss = predictive_loss(logits, targets)
    assert_close(loss, predictive_loss(logits[~ignored], targets[~ignored]))
    assert (torch.autograd.grad(loss, logits)[0][ignored] == 0).all()


def test_no_target_at_all_is_zero():
    logits = torch.randn(4, VOCAB, requires_grad=True)
    loss = predictive_loss(logits, torch.full((4,), IGNORE))
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


def test_predictive_loss_in_half_precision_is_summed_in_float32():
    logits = torch.zeros(5000, VOCAB, dtype=torch.bfloat16)
    loss = predictive_loss(logits, torch.zeros(5000, dtype=torch.long))
    assert loss.dtype == torch.float32
    assert_close(loss, math.log(VOCAB))


def test_readout_losses_equal_naive():
    torch.manual_seed(0)
    logits, guide = torch.randn(2, 12, VOCAB, dtype=torch.float64).requires_grad_()
    targets = random_targets(12)
    predictive, distilled = readout_losses(logits, guide, targets)
    for fast, slow in (
        (predictive, naive.predictive_loss(logits, targets)),
        (distilled, naive.distillation_loss(logits, guide, targets)),
    ):
        assert_close(fast, slow)
        assert_close(torch.autograd.grad(fast, logits, retain_graph=True)[0], torch.autograd.grad(slow, logits)[0])
    unused = torch.autograd.grad(predictive + distilled, guide, allow_unused=True)
    assert unused == (None,), "the teacher does not learn from it"
    assert readout_losses(logits, guide, torch.full((12,), IGNORE)) == (0, 0)
    # A teacher that is sure is the target itself.
    y = torch.randint(VOCAB, (12,))
    sure = 1e4 * torch.nn.functional.one_hot(y, VOCAB)
    predictive, distilled = readout_losses(logits, sure, y)
    assert_close(distilled, predictive)
    assert_close(predictive, predictive_loss(logits, y))
    assert {loss.dtype for loss in readout_losses(logits.bfloat16(), sure.bfloat16(), y)} == {torch.float32}


def test_dynamics_loss_equals_naive():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5, 2, 4, dtype=torch.float64).requires_grad_()
    fast = dynamics_loss(a, b)
    slow = naive.squared_error(zip(a.flatten(0, 1), b.flatten(0, 1), strict=True))
    assert_close(fast, slow)
    for x, y in zip(torch.autograd.grad(fast, (a, b)), torch.autograd.grad(slow, (a, b)), strict=True):
        assert_close(x, y)
        assert (x != 0).all(), "Eq. 3 moves both memories"


def test_uniformity_loss_equals_naive():
    torch.manual_seed(0)
    memory = torch.randn(3, 5, 2, 4, dtype=torch.float64, requires_grad=True)
    fast, slow = uniformity_loss(memory), naive.uniformity_loss(memory)
    assert_close(fast, slow)
    assert_close(torch.autograd.grad(fast, memory)[0], torch.autograd.grad(slow, memory)[0])


@pytest.mark.parametrize("width", [1, 2, 16, 128])
def test_uniformity_lies_between_its_bounds(width):
    torch.manual_seed(0)
    memory = torch.randn(8, 5, 2, width)
    loss = uniformity_loss(memory)
    assert -8 <= loss < 0
    assert_close(loss, uniformity_loss(memory * 10))  # of directions alone


def test_uniformity_at_its_ends():
    same = torch.ones(6, 5, 2, 4)
    assert abs(uniformity_loss(same)) < 1e-5
    opposite = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
    assert_close(uniformity_loss(opposite), -8.0)
    # Random directions in many dimensions are at distance √2.
    torch.manual_seed(0)
    assert_close(uniformity_loss(torch.randn(400, 1, 4096)), -4.0, 0.05)


def test_uniformity_of_a_sample_is_that_of_all():
    torch.manual_seed(0)
    memory = torch.randn(1000, 1, 3, dtype=torch.float64)
    exact = uniformity_loss(memory, sample=1000)
    drawn = torch.stack([uniformity_loss(memory, sample=128) for _ in range(20)])
    assert drawn.std() > 0
    assert abs(drawn.mean() - exact) < 0.03
    # Of memories that are all alike but two, no pair is of one with itself.
    apart = torch.zeros(2, 1, 3).index_fill(2, torch.tensor([0]), 1.0)
    apart[1] = -apart[1]
    assert_close(torch.stack([uniformity_loss(apart, sample=2) for _ in range(20)]), torch.full((20,), -8.0))


@pytest.mark.parametrize("ignored", [[], [0, 4, 5, 11], list(range(12))])
def test_where_asked_is_a_loop_over_targets(ignored):
    memory, targets = torch.randn(3, 4, 2, 5), torch.randint(1, 9, (3, 4))
    targets.view(-1)[ignored] = IGNORE
    answers, asked, doubled = where_asked(targets, memory, 2 * memory)
    places = [(b, t) for b in range(3) for t in range(4) if targets[b, t] != IGNORE]
    assert answers.tolist() == [targets[b, t] for b, t in places]
    assert_close(asked, torch.stack([memory[b, t] for b, t in places]) if places else memory.new_zeros(0, 2, 5))
    assert_close(doubled, 2 * asked)


@pytest.mark.parametrize("cell", ["gated", "transformer"])
@pytest.mark.parametrize(
    "make",
    [
        lambda teacher, rnn: SMT(teacher, rnn, SMTConfig(), 3),
        lambda teacher, rnn: SMT(teacher, rnn, SMTConfig(lambda_distill=1.0, lambda_trunk=0.0, num_chunks=3), 3),
        lambda teacher, rnn: DMT(teacher, rnn, DMTConfig(lambda_distill=1.0, bptt_window=3)),
        lambda teacher, rnn: BPTT(rnn),
    ],
)
def test_where_nothing_is_asked_every_parameter_still_has_a_gradient(make, cell):
    """As processes need that wait for each other's."""
    objective = make(*naive.models(cell=cell, layers=1))
    losses = objective({"tokens": torch.randint(7, (2, 6)), "targets": torch.full((2, 7), IGNORE)})
    losses["loss"].backward()
    assert losses["loss_readout"] == 0 and losses["loss"].isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)
