"""BPTT, whole and truncated, against the explicit loop; how far back its gradient reaches."""

import pytest
import torch

import naive
from naive import assert_close, batch, gradients, models
from retain.config import CELLS, IGNORE, BPTTConfig
from retain.objectives import BPTT


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", ["rms", "batch"])
@pytest.mark.parametrize("truncate", [None, 1, 4, 50])
def test_bptt_equals_naive(cell, norm, truncate):
    rnn = models(cell=cell, norm=norm)[1]
    objective = BPTT(rnn, BPTTConfig(truncate=truncate))
    fast, slow = objective(batch()), naive.bptt(rnn, batch(), truncate)
    assert fast.keys() == {"loss", "loss_readout"}
    assert_close(fast["loss"], slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow, objective))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "truncate, reached", [(None, [0, 1, 2, 3, 4, 5]), (4, [4, 5]), (3, [3, 4, 5]), (2, [4, 5]), (1, [5])]
)
def test_gradient_reaches_as_far_back_as_it_should(cell, truncate, reached):
    rnn = models(cell=cell)[1]
    objective = BPTT(rnn, BPTTConfig(truncate=truncate))
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
    objective = BPTT(models(cell=cell)[1], BPTTConfig(truncate=truncate))
    objective(batch())["loss"].backward()
    for name, p in objective.named_parameters():
        assert p.requires_grad and p.grad is not None and (p.grad != 0).any(), name


def test_bptt_thaws_what_an_earlier_phase_froze():
    rnn = models()[1].requires_grad_(False)
    assert all(p.requires_grad for p in BPTT(rnn, BPTTConfig()).parameters())


def test_batch_without_a_target_is_zero():
    data = batch()
    data["targets"][:] = IGNORE
    objective = BPTT(models()[1], BPTTConfig())
    loss = objective(data)["loss"]
    assert loss == 0
    loss.backward()
    assert all((p.grad == 0).all() for p in objective.parameters())


def test_finish_changes_nothing():
    rnn = models()[1]
    before = {k: v.clone() for k, v in rnn.state_dict().items()}
    BPTT(rnn, BPTTConfig()).finish()
    assert_close(dict(rnn.state_dict()), before)
