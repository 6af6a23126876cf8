"""Attention, rotary positions and the normalisation of memory against their plain forms."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import naive
from naive import assert_close
from retain.config import CellConfig, MemoryConfig
from retain.model.cells import build_cell
from retain.model.layers import Block, Norm, Transformer
from retain.model.memory_norm import MemoryNorm
from retain.ops.attention import (
    BLOCK,
    FEW_KEYS_COMPILED,
    PLAIN_ATTENTION_KEYS,
    attention,
    blocked_attention,
    plain_attention,
    summed_attention,
)
from retain.ops.elementwise import TABLED_POSITIONS, angles, at_least_float32, rms, rotary, squared_relu

THRESHOLDS = (1, FEW_KEYS_COMPILED, BLOCK, PLAIN_ATTENTION_KEYS)
KINDS = ("all", "causal", "mask", "both")


def looking(kind, *shape):
    """What `kind` lets queries look at; each may look at the first key, for one that may look nowhere has no answer."""
    mask = torch.rand(shape) < 0.5
    mask[..., 0] = True
    return {"causal": kind in ("causal", "both"), "mask": mask if kind in ("mask", "both") else None}


@pytest.mark.parametrize("length", sorted({n + beyond for n in THRESHOLDS for beyond in (0, 1)}))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_equals_naive(length, kind, compiling, dtype, monkeypatch):
    """On both sides of every length at which it is computed in another way."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    q, k, v = (torch.randn(2, 3, length, 4).to(dtype).requires_grad_() for _ in range(3))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    settings = looking(kind, 2, 1, length, length)
    fast, slow = attention(q, k, v, **settings), naive.attention(*exact, **settings)
    assert fast.dtype == dtype and fast.shape == slow.shape
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.04}[dtype]
    assert_close(fast.double(), slow, tolerance)
    weights = torch.randn_like(slow)
    settings = {"allow_unused": True, "materialize_grads": True}
    for a, b in zip(
        torch.autograd.grad((fast.double() * weights).sum(), (q, k, v), **settings),
        torch.autograd.grad((slow * weights).sum(), exact, **settings),
        strict=True,
    ):
        assert_close(a.double(), b, tolerance)


WAYS = [(way, 5, kind) for way in (plain_attention, summed_attention) for kind in KINDS]


@pytest.mark.parametrize("way, length, kind", [*WAYS, (blocked_attention, 2 * BLOCK + 3, "causal")])
def test_ways_of_attention_equal_naive_in_double_precision(way, length, kind):
    """Which `attention` itself takes where they are faster: in half precision, or as a step is compiled."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    settings = looking(kind, 2, 1, length, length)
    ours = way(q, k, v) if way is blocked_attention else way(q, k, v, **settings)
    slow = naive.attention(q, k, v, **settings)
    assert_close(ours, slow)
    weights = torch.randn_like(slow)
    for a, b in zip(*(torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (ours, slow)), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_one_query_of_many_keys_equals_naive(dtype, masked):
    torch.manual_seed(0)
    q, *kv = (torch.randn(3, 2, length, 8).to(dtype).requires_grad_() for length in (1, 20, 20))
    exact = [x.detach().double().requires_grad_() for x in (q, *kv)]
    settings = looking("mask" if masked else "all", 3, 1, 1, 20)
    fast, slow = attention(q, *kv, **settings), naive.attention(*exact, **settings)
    tolerance = 1e-5 if dtype == torch.float32 else 0.04
    assert_close(fast.double(), slow, tolerance)
    weights = torch.randn_like(slow)
    for a, b in zip(
        torch.autograd.grad((fast.double() * weights).sum(), (q, *kv)),
        torch.autograd.grad((slow * weights).sum(), exact),
        strict=True,
    ):
        assert_close(a.double(), b, tolerance)


def test_many_queries_may_share_one_key():
    q, k, v = torch.randn(2, 5, 4), torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    assert_close(attention(q, k, v), v.expand(2, 5, 4))


def test_rotary_keeps_lengths_and_depends_on_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, dtype=torch.float64)

    def turned(x, position):
        return rotary(x[None, None], angles(torch.tensor([position]), 6, x.dtype))[0, 0]

    def product(i, j):
        return turned(q, i) @ turned(k, j)

    assert_close(turned(q, 9).norm(), q.norm())
    assert_close(product(3, 1), product(103, 101))
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    assert_close(turned(q, 0), q)


@pytest.mark.parametrize("length", [1, 7, TABLED_POSITIONS, TABLED_POSITIONS + 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_angles_at_hand_are_those_computed(length, dtype):
    transformer = Transformer(12, 2, 1).to(dtype)
    found = transformer.first_angles(torch.zeros(1, length, 12, dtype=dtype))
    exact = angles(torch.arange(length), 6, dtype)
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.equal(ours.to(dtype), theirs.to(dtype))


def test_causal_transformer_is_blind_to_what_follows():
    transformer = naive.randomise(Transformer(8, 2, 2)).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, 3] += 1
    before, after = transformer(x, causal=True), transformer(changed, causal=True)
    assert_close(before[:, :3], after[:, :3])
    assert ((before - after)[:, 3:].abs().amax(-1) > 1e-6).all()
    assert ((transformer(x) - transformer(changed)).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("kind", ["rms", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_memory_norm_equals_naive(kind, training):
    torch.manual_seed(0)
    norm = MemoryNorm(kind, 2, 4).double().train(training)
    if kind == "batch":
        norm.mean.normal_()
        norm.variance.uniform_(0.5, 2)
    memory = (3 * torch.randn(3, 5, 2, 4, dtype=torch.float64) + 1).requires_grad_()
    slow, fast = naive.memory_norm(norm, memory), norm(memory)
    assert_close(fast, slow)
    weights = torch.randn_like(fast)
    assert_close(
        torch.autograd.grad((fast * weights).sum(), memory)[0], torch.autograd.grad((slow * weights).sum(), memory)[0]
    )
    if kind == "rms":
        assert_close(fast.square().mean(-1), torch.ones(3, 5, 2, dtype=torch.float64), 1e-5)
    elif training:
        assert_close(fast.mean((0, 1)), torch.zeros(2, 4, dtype=torch.float64))
        assert_close(fast.var((0, 1), correction=0), torch.ones(2, 4, dtype=torch.float64), 1e-4)


@pytest.mark.parametrize("mean", [0.0, 1.0, -10.0, 30.0, 100.0])
@pytest.mark.parametrize("deviation", [0.01, 1.0, 30.0])
def test_memory_norm_is_exact_however_far_from_zero_memories_lie(mean, deviation):
    """In float32: values, running statistics and gradient are those of the plain form in float64."""
    torch.manual_seed(0)
    norm = MemoryNorm("batch", 2, 4)
    memory = (mean + deviation * torch.randn(64, 9, 2, 4)).requires_grad_()
    exact = memory.detach().double().requires_grad_()
    fast, slow = norm(memory), naive.memory_norm(norm, exact)
    assert_close(fast.double(), slow, 2e-3)
    assert_close(norm.variance / exact.var((0, 1), correction=0), torch.ones(2, 4), 1e-3)
    weights = torch.randn_like(fast)
    of_fast = torch.autograd.grad((fast * weights).sum(), memory)[0].double()
    of_slow = torch.autograd.grad((slow * weights).sum(), exact)[0]
    assert (of_fast - of_slow).norm() < 1e-3 * of_slow.norm()


def test_memory_norm_learns_its_statistics_at_once_and_then_slowly():
    torch.manual_seed(0)
    norm = MemoryNorm("batch", 1, 3)
    chunks = [2 * torch.randn(50, 4, 1, 3) + 5 for _ in range(4)]
    for chunk in chunks:
        norm(chunk)
    # While fewer than 1 / MOMENTUM = 10 batches are seen, it is their plain average.
    assert_close(norm.mean, torch.stack([c.mean((0, 1)) for c in chunks]).mean(0))
    assert_close(norm.variance, torch.stack([c.var((0, 1), correction=0) for c in chunks]).mean(0), 1e-4)
    norm.seen.fill_(1000)
    before = norm.mean.clone()
    norm(torch.zeros(5, 5, 1, 3))
    assert_close(norm.mean, 0.9 * before)
    norm.eval()
    before = norm.state_dict()["mean"].clone()
    norm(torch.zeros(5, 5, 1, 3))
    assert torch.equal(norm.mean, before)


def test_memory_norm_keeps_float32():
    for kind in ("rms", "batch"):
        assert MemoryNorm(kind, 2, 4)(torch.randn(3, 2, 4).bfloat16()).dtype == torch.float32
    assert at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_rms_of_nothing_is_finite():
    assert torch.equal(rms(torch.zeros(2, 4)), torch.zeros(2, 4))


@pytest.mark.parametrize("keep", [slice(-1, None), slice(2, None), slice(0, -1), slice(0, 5)])
@pytest.mark.parametrize("causal, masked", [(False, False), (True, False), (False, True), (True, True)])
def test_positions_that_are_kept_are_those_of_the_whole(keep, causal, masked):
    torch.manual_seed(0)
    transformer = naive.randomise(Transformer(8, 2, 2)).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True, True, True]]) if masked else None
    some, whole = transformer(x, keep=keep, causal=causal, mask=mask), transformer(x, causal=causal, mask=mask)[:, keep]
    assert_close(some, whole)
    weights = torch.randn_like(whole)
    wanted = [x, *transformer.parameters()]
    for a, b in zip(
        torch.autograd.grad((some * weights).sum(), wanted),
        torch.autograd.grad((whole * weights).sum(), wanted),
        strict=True,
    ):
        assert_close(a, b)


def test_a_token_alone_needs_no_queries_and_keys():
    torch.manual_seed(0)
    transformer = naive.randomise(Transformer(8, 2, 2)).double()
    x = torch.randn(3, 1, 8, dtype=torch.float64)
    alone = transformer(x)
    everywhere = transformer(x, mask=torch.ones(1, 1, dtype=torch.bool))  # a mask goes the general way
    assert_close(alone, everywhere)
    found = naive.gradients(alone.square().sum(), transformer)
    assert_close(found, naive.gradients(everywhere.square().sum(), transformer))
    assert found["blocks.0.qkv.weight"][16:].abs().sum() > 0


PLAINLY = {
    "squared_relu": (lambda x, gain, turn: squared_relu(x), lambda x, gain, turn: x.relu() ** 2),
    "norm": (
        lambda x, gain, turn: normed(x, gain),
        lambda x, gain, turn: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain,
    ),
    "rotary": (
        lambda x, gain, turn: rotary(x, turn),
        lambda x, gain, turn: torch.view_as_real(
            torch.complex(x[..., :3], x[..., 3:]) * torch.complex(turn[0][..., :3], turn[1][..., 3:])
        ).transpose(-1, -2).flatten(-2),
    ),
}  # fmt: skip


def normed(x, gain):
    norm = Norm(6)
    del norm.gain
    norm.gain = gain
    return norm(x)


@pytest.mark.parametrize("name", PLAINLY)
def test_gradients_written_by_hand_are_autograds(name):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 6, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(6, dtype=torch.float64, requires_grad=True)
    fast, slow = (f(x, gain, angles(torch.tensor([0, 1, 5, 900]), 6, x.dtype)) for f in PLAINLY[name])
    assert fast.grad_fn is not None and "Backward" in type(fast.grad_fn).__name__
    assert_close(fast, slow)
    with torch.no_grad():  # another way, without gradients
        assert_close(PLAINLY[name][0](x, gain, angles(torch.tensor([0, 1, 5, 900]), 6, x.dtype)), slow)
    weights = torch.randn_like(slow)
    settings = {"allow_unused": True, "materialize_grads": True}
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), (x, gain), **settings),
        torch.autograd.grad((slow * weights).sum(), (x, gain), **settings),
        strict=True,
    ):
        assert_close(a, b)


class Powers(TorchDispatchMode):
    """Whether anything is raised to a power in bfloat16."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        power = function.overloadpacket is torch.ops.aten.pow
        if power and getattr(args[0], "dtype", None) == torch.bfloat16:
            self.found.append(function)
        return function(*args, **(kwargs or {}))


def test_nothing_is_raised_to_a_power_between_products():
    """Autocast on CUDA computes powers, and so squares, in float32; a product with `out=` then meets two dtypes."""
    with Powers() as powers:
        torch.ones(2, dtype=torch.bfloat16).square()
    assert powers.found, "this is how a square is seen"
    cell = build_cell(MemoryConfig(tokens=1, width=8), CellConfig(kind="gated", width=8))
    block = Transformer(8, 2, 2)
    memory, inputs = torch.randn(2, 1, 8, requires_grad=True), torch.randn(2, 5, 8)
    with Powers() as powers, torch.autocast("cpu", torch.bfloat16):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                cell(memory, inputs[:, 0])
                rolled = cell.rollout(memory, inputs)
                mixed = block(inputs)
                if grad:
                    (rolled.sum() + mixed.sum()).backward()
    assert not powers.found


def test_a_block_is_its_formula():
    torch.manual_seed(0)
    block, rows = naive.randomise(Block(8, 2)).double(), []
    x, turn = torch.randn(3, 5, 8, dtype=torch.float64), angles(torch.arange(5), 4, torch.float64)

    def normed(row, gain):
        return row / (row.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    for row in x:
        q, k, v = (normed(row, block.norm_attention.gain) @ w.T for w in block.qkv.weight.chunk(3))
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            at, to = (rotary(a[:, None, part], turn)[:, 0] for a in (q, k))
            heads.append((at @ to.T / 2).softmax(-1) @ v[:, part])
        row = row + torch.cat(heads, -1) @ block.project.weight.T
        hidden = normed(row, block.norm_mlp.gain) @ block.up.weight.T
        rows.append(row + hidden.clamp_min(0) ** 2 @ block.down.weight.T)
    assert_close(block(x, turn), torch.stack(rows))
