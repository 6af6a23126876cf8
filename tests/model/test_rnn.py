"""The RNN alone: however a stream is cut, it is the same stream, at the same memory."""

import pytest
import torch

import naive
from naive import VOCAB, assert_close, batch, gradients, models
from retain.config import CELLS, CellConfig, MemoryConfig, TeacherConfig
from retain.errors import UserError
from retain.model.rnn import RNN

CASES = [*((cell, norm) for cell in CELLS for norm in ("rms", "batch")), ("gated", "fsq"), ("transformer", "fsq")]


@pytest.fixture(params=CASES, ids="-".join)
def rnn(request):
    return models(cell=request.param[0], norm=request.param[1])[1]


@pytest.fixture
def tokens():
    return torch.randint(VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))


def test_forward_is_its_steps(rnn, tokens):
    logits, last = rnn(tokens)
    assert logits.shape == (3, 7, VOCAB) and last.shape == (3, *rnn.m_0.shape)
    memory, slow = rnn.init_memory(3), []
    for token in tokens.unbind(1):
        step, memory = rnn.step(token, memory)
        slow.append(step)
    slow = torch.stack(slow, 1)
    assert_close(logits, slow)
    assert_close(last, memory)
    weights = torch.randn_like(logits)
    assert_close(gradients((logits * weights).sum(), rnn), gradients((slow * weights).sum(), rnn))


@pytest.mark.parametrize("cuts", [[7], [1, 6], [3, 0, 2, 2], [0, 7], [1] * 7], ids=str)
def test_forward_is_any_chunking(rnn, tokens, cuts):
    logits, last = rnn(tokens)
    memory, pieces = None, []
    for chunk in tokens.split(cuts, 1):
        piece, memory = rnn(chunk, memory)
        pieces.append(piece)
    assert_close(torch.cat(pieces, 1), logits)
    assert_close(memory, last)


def test_rollout_equals_naive_loop(rnn, tokens):
    start = torch.randn(3, *rnn.m_0.shape, dtype=torch.float64)
    fast, slow = rnn.rollout(tokens, start), []
    for row, m in zip(tokens, start, strict=True):
        for token in row:
            m = naive.update(rnn, m, token)
            slow.append(m)
    slow = torch.stack(slow).view_as(fast)
    assert_close(fast, slow)
    weights = torch.randn_like(fast)
    assert_close(gradients((fast * weights).sum(), rnn), gradients((slow * weights).sum(), rnn))


def test_update_treats_every_position_alone(rnn, tokens):
    memory = torch.randn(3, 7, *rnn.m_0.shape, dtype=torch.float64)
    every = rnn.update(memory, tokens)
    for b, t in ((0, 0), (1, 3), (2, 6)):
        assert_close(every[b, t], naive.update(rnn, memory[b, t], tokens[b, t]))


def test_sequences_do_not_meet(rnn, tokens):
    assert_close(rnn(tokens)[0][1:2], rnn(tokens[1:2])[0])


def test_memory_is_the_same_bytes_however_long_the_stream(rnn):
    rnn = rnn.float()
    sizes = set()
    with torch.no_grad():
        for length in (1, 64, 256):
            memory = rnn(torch.randint(VOCAB, (1, length)))[1]
            assert memory.dtype == torch.float32 and memory.isfinite().all()
            sizes.add(memory.untyped_storage().nbytes())  # a view would hold on to the whole sequence
            sizes.add(rnn.step(torch.zeros(1, dtype=torch.long), memory)[1].untyped_storage().nbytes())
    assert sizes == {4 * rnn.m_0.numel()}


def test_memory_can_be_saved_and_batched(rnn, tokens, tmp_path):
    memory = rnn(tokens[:, :4])[1].detach()
    torch.save(memory, tmp_path / "memory.pt")
    restored = torch.load(tmp_path / "memory.pt")
    assert_close(rnn(tokens[:, 4:], restored)[0], rnn(tokens)[0][:, 4:])
    order = torch.tensor([2, 0])
    assert_close(rnn(tokens[order, 4:], restored[order])[0], rnn(tokens)[0][order, 4:])
    assert torch.equal(memory, restored), "reading must not write into the caller's memory"


READING = {
    "forward": lambda rnn, tokens, memory: rnn(tokens, memory),
    "rollout": lambda rnn, tokens, memory: rnn.rollout(tokens, memory),
    "cut rollout": lambda rnn, tokens, memory: rnn.rollout(tokens, memory, (1, 2)),
    "step": lambda rnn, tokens, memory: rnn.step(tokens[:, 0], memory),
    "update": lambda rnn, tokens, memory: rnn.update(memory, tokens[:, 0]),
}


@pytest.mark.parametrize("streams", [(3, 2), (1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("way", READING)
def test_a_memory_for_each_stream_or_a_clear_line(rnn, way, streams):
    """Broadcast, all streams would read one token, or one memory would be that of all."""
    memories, rows = streams
    for length in (1, 7):
        tokens = torch.zeros(rows, length, dtype=torch.long)
        with pytest.raises(UserError) as caught:
            READING[way](rnn, tokens, torch.zeros(memories, *rnn.m_0.shape, dtype=torch.float64))
        line = f"memory: {memories} streams, but tokens of {rows}; give one memory for each stream"
        assert str(caught.value) == line


@pytest.mark.parametrize("way", READING)
def test_memory_of_another_shape_is_a_clear_line(way):
    rnn = models()[1]  # of 2 memory tokens of width 4
    for shape in ((3, 4, 2), (3, 1, 4), (3, 2, 1), (3, 8), (2, 4)):
        with pytest.raises(UserError) as caught:
            READING[way](rnn, torch.zeros(3, 7, dtype=torch.long), torch.zeros(*shape, dtype=torch.float64))
        assert str(caught.value) == f"memory: {shape} is the wrong shape; give (B, 2, 4)"


@pytest.mark.parametrize("name, give", [("forward", "B, T"), ("rollout", "B, T"), ("step", "B")])
def test_tokens_of_other_axes_are_a_clear_line(name, give):
    rnn = models()[1]
    for shape in ((), (2,), (2, 3), (2, 3, 4)):
        if len(shape) == give.count(",") + 1:
            continue
        tokens = torch.zeros(shape, dtype=torch.long)
        with pytest.raises(UserError, match=r"^tokens?: \(.*\) is the wrong shape; give \(" + give + r"\)$"):
            getattr(rnn, name)(tokens, rnn.init_memory(2))
    with pytest.raises(UserError, match="tokens: "):
        rnn(torch.zeros(2, dtype=torch.long))
    with pytest.raises(UserError, match=r"memory: \(2, 3\) streams, but tokens of 3; give"):
        rnn.update(rnn.init_memory(6).view(2, 3, 2, 4), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("length, first, every", [(6, 0, 2), (6, 1, 2), (7, 0, 3), (7, 2, 3), (5, 3, 4), (5, 2, 9)])
@pytest.mark.parametrize("cell, layers", [("gated", 1), ("gated", 2), ("delta", 1), ("mlp", 1)])
def test_a_cut_rollout_is_stretches_one_after_another(cell, layers, length, first, every):
    """What is cut goes back side by side where the cell can do that; the twin detaches between."""
    rnn = models(cell=cell, layers=layers)[1]
    assert rnn.cuts == (cell == "delta" or (cell == "gated" and layers == 1))
    tokens = batch(3, length)["tokens"]
    start = torch.randn(3, *rnn.m_0.shape, dtype=torch.float64, requires_grad=True)
    fast, slow, memory = rnn.rollout(tokens, start, (first, every)), [], start
    for t in range(length):
        if t and (t - first) % every == 0:
            memory = memory.detach()
        memory = rnn.update(memory, tokens[:, t])
        slow.append(memory)
    slow = torch.stack(slow, 1)
    assert_close(fast, slow)
    weights = torch.randn_like(fast)
    found = []
    for loss in ((fast * weights).sum(), (slow * weights).sum()):
        of_start = torch.autograd.grad(loss, start, retain_graph=True)[0]
        found.append(gradients(loss, rnn) | {"start": of_start})
    assert_close(*found)
    assert found[0]["start"].abs().sum() > 0


@pytest.mark.parametrize("cell", ["mlp", "gated", "delta", "transformer"])
def test_inputs_looked_up_in_a_table_are_those_projected_one_by_one(cell):
    rnn = naive.models(cell=cell)[1]
    tokens = torch.arange(2 * naive.VOCAB).view(2, -1) % naive.VOCAB
    table, each = rnn.inputs(tokens), torch.stack([rnn.inputs(row) for row in tokens.flatten().split(1)])
    assert_close(table, each.view(table.shape))
    weights = torch.randn_like(table)
    found = naive.gradients((table * weights).sum(), rnn)
    assert_close(found, naive.gradients((each.view(table.shape) * weights).sum(), rnn))
    assert found["embed.weight"].abs().sum() > 0 and found["cell.from_input.weight"].abs().sum() > 0


def test_gradients_of_a_frequent_token_are_added_up_in_float32():
    """In bfloat16 a sum of many small gradients stops growing at a few hundred times their size."""
    torch.manual_seed(0)
    memory = MemoryConfig(tokens=1, width=8, norm="batch")
    rnn = RNN(5, memory, TeacherConfig(width=8, heads=2), CellConfig(kind="gated", width=8))
    tokens = torch.zeros(64, 64, dtype=torch.long)
    found = {}
    for name, on in (("bf16", True), ("fp32", False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            found[name] = torch.autograd.grad(rnn.inputs(tokens).sum(), rnn.embed.weight)[0][0]
    assert (found["bf16"] - found["fp32"]).abs().max() < 0.02 * found["fp32"].abs().max()
