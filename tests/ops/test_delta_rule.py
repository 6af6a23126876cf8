"""The gated delta rule in chunks equals one write after another."""

import pytest
import torch
import torch.nn.functional as F

import naive
from naive import assert_close
from retain.ops import delta_rule as ops

STREAMS, LENGTH, KEY, VALUE = 3, 11, 4, 5


def draw(per_token, length=LENGTH):
    torch.manual_seed(per_token)
    k = F.normalize(torch.randn(STREAMS, length, per_token, KEY, dtype=torch.float64), dim=-1)
    v = torch.randn(STREAMS, length, per_token, VALUE, dtype=torch.float64)
    rate = 2 * torch.rand(STREAMS, length, per_token, dtype=torch.float64)
    q, log_gate = torch.randn(STREAMS, length, KEY, dtype=torch.float64), -3 * torch.rand(STREAMS, length).double()
    return [x.requires_grad_() for x in (q, k, v, rate, log_gate)]


@pytest.mark.parametrize("writes", [1, 4, 6, 64])  # in a chunk: of one token, of several, of all
@pytest.mark.parametrize("per_token", [1, 2, 3])
def test_chunks_equal_one_write_after_another(per_token, writes, monkeypatch):
    monkeypatch.setattr(ops, "WRITES", writes)
    inputs = draw(per_token)
    fast = ops.delta_rule(*inputs)
    slow = torch.stack([naive.delta_rule(*(x[b] for x in inputs)) for b in range(STREAMS)])
    assert_close(fast, slow)
    weights = torch.randn_like(fast)
    assert_close(*(dict(enumerate(torch.autograd.grad((x * weights).sum(), inputs))) for x in (fast, slow)))


@pytest.mark.parametrize("writes", [1, 4, 64])
def test_states_equal_one_write_after_another(writes, monkeypatch):
    monkeypatch.setattr(ops, "WRITES", writes)
    _, k, v, rate, _ = draw(1)
    inputs = [k, v, rate]
    fast = ops.delta_states(k[:, :, 0], v[:, :, 0], rate[:, :, 0])
    slow = torch.stack([naive.delta_states(k[b, :, 0], v[b, :, 0], rate[b, :, 0]) for b in range(STREAMS)])
    assert_close(fast, slow)
    weights = torch.randn_like(fast)
    assert_close(*(dict(enumerate(torch.autograd.grad((x * weights).sum(), inputs))) for x in (fast, slow)))


def test_no_tokens_and_gates_that_forget_all():
    assert ops.delta_rule(*draw(2, length=1)).shape == (STREAMS, 1, VALUE)
    q, k, v, rate, _ = draw(1)
    forgotten = ops.delta_rule(q, k, v, rate, torch.full((STREAMS, LENGTH), -1e4).double().requires_grad_())
    assert_close(forgotten, (rate * (q[:, :, None] * k).sum(-1)) * v[:, :, 0])
    assert all(g.isfinite().all() for g in torch.autograd.grad(forgotten.sum(), [q, k, v, rate]))


def test_a_negative_eigenvalue_tracks_parity_and_reflections_a_permutation():
    """β = 2 turns a sign at each 1, and two reflections bring three things into a circle."""
    bits = torch.randint(2, (1, 40), generator=torch.Generator().manual_seed(0))
    k, first = torch.ones(1, 40, 1, 1), torch.arange(40) == 0
    v = (first * 1.0).view(1, 40, 1, 1)
    rate = torch.where(first, torch.ones(40), 2.0 * bits[0]).view(1, 40, 1)
    sign = ops.delta_rule(torch.ones(1, 40, 1), k, v, rate, torch.zeros(1, 40))[0, :, 0]
    assert torch.equal(sign, 1 - 2.0 * (bits[0].cumsum(0) - bits[0, 0]).remainder(2))
    # The first token stores what is 0, 1, 2 at the places e_0, e_1, e_2; each later one swaps two pairs of places.
    e = torch.eye(3)
    swaps = F.normalize(torch.stack([e[0] - e[1], e[1] - e[2], e[0] - e[0]]), dim=-1)
    k = torch.cat([e[None], swaps.expand(3, 3, 3)])[None]
    v = torch.cat([torch.arange(3.0).view(1, 3, 1), torch.zeros(3, 3, 1)])[None]
    rate = torch.tensor([[1.0, 1.0, 1.0]] + [[2.0, 2.0, 0.0]] * 3)[None]
    q = e[:1].expand(1, 4, 3)
    found = ops.delta_rule(q, k, v, rate, torch.zeros(1, 4))[0, :, 0].round().int().tolist()
    assert sorted(found[:3]) == [0, 1, 2] and found[3] == found[0] == 0


def test_the_sequential_steps_are_the_chunks():
    assert [ops.count_chunks(length, 2) for length in (1, 32, 33, 65)] == [1, 1, 2, 3]
    assert ops.count_chunks(5, 100) == 5
