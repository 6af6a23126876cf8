"""Rollouts for all steps at once give the memories of the loop, or run it and say so."""

import pytest
import torch

from naive import VOCAB, assert_close, batch, gradients, models
from retain.config import DMTConfig
from retain.errors import UserError
from retain.objectives import DMT, rollout_from_teacher
from retain.objectives.parallel import TOLERANCE, rollout_in_parallel

LENGTH = 12


@pytest.fixture(params=[("gated", "batch"), ("mlp", "rms"), ("transformer", "batch"), ("delta", "batch")], ids="-".join)
def both(request):
    teacher, rnn = models(cell=request.param[0], norm=request.param[1])
    return teacher.eval(), rnn


def rolled(rnn, memory, tokens, horizon, method, **more):
    torch.manual_seed(4)
    with torch.no_grad():
        slow = rollout_from_teacher(rnn, memory, tokens, horizon)
    torch.manual_seed(4)
    with torch.no_grad():
        return slow, *rollout_in_parallel(rnn, memory, tokens, horizon, method, **more)


@pytest.mark.parametrize("method", ["jacobi", "newton"])
@pytest.mark.parametrize("horizon", [1, 2, 5, LENGTH])
def test_as_many_iterations_as_the_horizon_are_exact(both, horizon, method):
    teacher, rnn = both
    tokens = batch(3, LENGTH)["tokens"]
    slow, fast, iterations, fell_back = rolled(rnn, teacher.encode(tokens).detach(), tokens, horizon, method)
    assert 1 <= iterations <= horizon and not fell_back
    if iterations == horizon:
        assert_close(fast, slow)
    torch.testing.assert_close(fast, slow, rtol=0, atol=20 * TOLERANCE)
    assert not fast.requires_grad


@pytest.mark.parametrize("method", ["jacobi", "newton"])
def test_a_guess_that_is_right_takes_one_iteration_and_a_fall_back_is_the_loop(both, method):
    teacher, rnn = both
    tokens = batch(3, LENGTH)["tokens"]
    labels = teacher.encode(tokens).detach()
    with torch.no_grad():
        right = torch.cat([labels[:, :1], rnn.rollout(tokens, labels[:, 0])], 1)
    slow, fast, iterations, fell_back = rolled(rnn, right, tokens, LENGTH, method)
    assert iterations == 1 and not fell_back
    assert_close(fast, slow)
    slow, fast, iterations, fell_back = rolled(rnn, 50 * labels, tokens, 5, method, most=2)
    assert iterations == 2 and fell_back
    torch.testing.assert_close(fast, slow, rtol=0, atol=0)


def test_newton_is_done_at_once_where_f_is_linear_in_each_number():
    """m' = a_x m + b_x: the diagonal is the whole Jacobian, so one iteration solves any length; Jacobi needs all."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Linear(4, 4)

        def forward(self, memory, inputs):
            return 0.9 * torch.sigmoid(self.mix(inputs))[:, None] * memory + inputs[:, None]

    teacher, rnn = models()
    rnn.cell = Linear().double()
    tokens = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    slow, fast, iterations, fell_back = rolled(rnn, teacher.encode(tokens).detach(), tokens, 40, "newton")
    assert iterations == 2 and not fell_back  # the second sees that nothing changes
    assert_close(fast, slow)
    assert rolled(rnn, teacher.encode(tokens).detach(), tokens, 40, "jacobi")[2] > 10


@pytest.mark.parametrize("method", ["jacobi", "newton"])
def test_dmt_learns_the_same_and_counts(method):
    found = []
    for rollout in ("loop", method):
        settings = {"horizon_growth": 0.0, "lambda_dyn": 0.8, "lambda_readout": 0.6}
        objective = DMT(*models(cell="gated"), DMTConfig(rollout=rollout, **settings))
        torch.manual_seed(0)
        losses = objective(batch())
        found.append({name: losses[name] for name in ("loss", "loss_dyn")} | gradients(losses["loss"], objective))
        chain = objective.sequential_steps(6, 1.0)
    loop = DMT(*models(cell="gated"), DMTConfig(horizon_growth=0.0)).sequential_steps(6, 1.0)
    assert_close(*found, tolerance=100 * TOLERANCE)
    assert losses["rollout_fallback"] == 0 and 1 <= losses["rollout_iterations"] <= 6
    assert chain == loop - (6 - int(losses["rollout_iterations"])) * objective.rnn.depth


def test_labels_of_some_steps_are_no_guess():
    with pytest.raises(UserError, match="rollout: jacobi needs a label at every step"):
        DMTConfig(rollout="jacobi", label_every=4, horizon=8)
