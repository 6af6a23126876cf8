"""BPTT, whole and truncated, against the explicit loop; how far back its gradient reaches."""

import pytest
import torch

import naive
from naive import assert_close, batch, gradients, models
from retain.config import CELLS, IGNORE
from retain.objectives import BPTT

BATCH = batch()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", ["rms", "batch"])
@pytest.mark.parametrize("truncate, first", [(None, 0), (1, 0), (4, 0), (4, 1), (3, 2), (50, 0)])
def test_bptt_equals_naive(cell, norm, truncate, first, monkeypatch):
    rnn = models(cell=cell, norm=norm)[1]
    objective = BPTT(rnn, truncate)
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.full(size, first))
    data = BATCH
    fast, slow = objective(data), naive.bptt(rnn, data, truncate, first)
    assert fast.keys() == {"loss", "loss_readout"}
    assert_close(fast["loss"], slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow, objective))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "truncate, first, reached",
    [
        (None, 0, [0, 1, 2, 3, 4, 5]),
        (4, 0, [4, 5]),
        (4, 2, [2, 3, 4, 5]),
        (4, 1, [5]),
        (3, 0, [3, 4, 5]),
        (2, 0, [4, 5]),
        (1, 0, [5]),
    ],
)
def test_gradient_reaches_as_far_back_as_it_should(cell, truncate, first, reached, monkeypatch):
    rnn = models(cell=cell)[1]
    objective = BPTT(rnn, truncate)
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.full(size, first))
    targets = torch.full((1, 7), IGNORE)
    targets[0, 6] = 3  # the one loss there is looks at the last memory
    objective({"tokens": torch.arange(6)[None], "targets": targets})["loss"].backward()
    nonzero = (rnn.embed.weight.grad != 0).any(1)
    assert nonzero.nonzero().flatten().tolist() == reached
    assert (rnn.m_0.grad is not None and bool((rnn.m_0.grad != 0).any())) == (truncate is None)
    assert truncate is None or len(reached) <= truncate


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("truncate", [None, 2])
def test_every_parameter_has_a_gradient(cell, truncate):
    objective = BPTT(models(cell=cell)[1], truncate)
    objective(batch())["loss"].backward()
    for name, p in objective.named_parameters():
        assert p.requires_grad and p.grad is not None and (p.grad != 0).any(), name


def test_bptt_thaws_what_an_earlier_phase_froze():
    rnn = models()[1].requires_grad_(False)
    assert all(p.requires_grad for p in BPTT(rnn).parameters())


def test_batch_without_a_target_is_zero():
    data = batch()
    data["targets"][:] = IGNORE
    objective = BPTT(models()[1])
    loss = objective(data)["loss"]
    assert loss == 0
    loss.backward()
    assert all((p.grad == 0).all() for p in objective.parameters())


def test_every_step_may_be_the_first_behind_a_cut():
    """Where a cut were always at one place, no answer behind it could ever learn from what stands before it."""
    objective, reached = BPTT(models(cell="gated")[1], 3), set()
    targets = torch.full((1, 7), IGNORE)
    targets[0, 6] = 3
    torch.manual_seed(0)
    for _ in range(40):
        objective.zero_grad()
        objective({"tokens": torch.arange(6)[None], "targets": targets})["loss"].backward()
        reached.add(len((objective.rnn.embed.weight.grad != 0).any(1).nonzero()))
    assert reached == {1, 2, 3}


def test_finish_changes_nothing():
    rnn = models()[1]
    before = {k: v.clone() for k, v in rnn.state_dict().items()}
    BPTT(rnn).finish()
    assert_close(dict(rnn.state_dict()), before)
