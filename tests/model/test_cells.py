"""Every cell is one step of memory, and a user's own cell is used or refused with a clear line."""

import pytest
import torch
from torch import nn

from naive import VOCAB, assert_close, gradients, randomise
from retain.config import CELLS, CellConfig, MemoryConfig, TeacherConfig
from retain.errors import UserError
from retain.model.cells import CELLS as BUILT_IN
from retain.model.cells import build_cell, check_cell
from retain.model.rnn import RNN

MEMORY = MemoryConfig(tokens=2, width=4, norm="rms")
READOUT = TeacherConfig(encoder="state", width=8, heads=2, layers=1, decoder_layers=1, future_len=2)


def memory_of(kind, norm="rms"):
    return MemoryConfig(tokens=4 if kind == "delta" else 2, width=4, norm=norm)


def config(kind="mlp", residual=True, layers=2, **more):
    return CellConfig(kind=kind, width=8, heads=2, layers=layers, residual=residual, **more)


class OwnCell(nn.Module):
    """What a user might write."""

    def __init__(self, memory, config):
        super().__init__()
        self.mix = nn.Linear(memory.width, memory.width)

    def forward(self, memory, inputs):
        return torch.tanh(self.mix(memory) + inputs[:, None])


class WrongShape(OwnCell):
    def forward(self, memory, inputs):
        return super().forward(memory, inputs).flatten(1)


class WrongType(OwnCell):
    def forward(self, memory, inputs):
        return memory, inputs


class Whole(OwnCell):
    def forward(self, memory, inputs):
        return memory.long()


class WrongForward(OwnCell):
    def forward(self, memory):
        return memory


class WrongInit(OwnCell):
    def __init__(self):
        super().__init__(MEMORY, None)


def not_a_module(memory, config):
    return lambda memory, inputs: memory


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm", ["rms", "batch"])
def test_cells_keep_shape_and_float32(kind, residual, norm):
    torch.manual_seed(0)
    memory = memory_of(kind, norm)
    rnn = randomise(RNN(VOCAB, memory, READOUT, config(kind, residual)))
    before = torch.randn(3, 5, memory.tokens, 4)
    tokens = torch.randint(VOCAB, (3, 5))
    for precise in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not precise):
            after = rnn.update(before, tokens)
            rolled = rnn.rollout(tokens, before[:, 0])
        assert after.shape == before.shape == rolled.shape
        assert after.dtype == rolled.dtype == torch.float32
    if norm == "rms":
        assert_close(after.square().mean(-1), torch.ones(3, 5, memory.tokens), 1e-3)


@pytest.mark.parametrize("kind", CELLS)
def test_cells_read_all_of_memory_and_the_token(kind):
    torch.manual_seed(0)
    cell = randomise(build_cell(memory_of(kind), config(kind))).double()
    memory = torch.randn(1, memory_of(kind).tokens, 4, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    out = cell(memory, inputs)
    for piece in out.flatten()[[0, -1]]:
        for grad in torch.autograd.grad(piece, (memory, inputs), retain_graph=True):
            assert (grad != 0).any()
    reached = torch.stack([torch.autograd.grad(x, memory, retain_graph=True)[0][0] for x in out.flatten()])
    unread = torch.zeros_like(memory[0], dtype=torch.bool)
    if kind == "delta":
        unread[1, -1] = True  # the oldest of the last inputs makes way
    assert torch.equal((reached != 0).any(0), ~unread)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_residual_cells_start_as_a_copy_of_memory(kind):
    memory, inputs = torch.randn(3, 2, 4), torch.randn(3, 4)
    assert torch.equal(build_cell(MEMORY, config(kind))(memory, inputs), memory)
    assert not torch.allclose(build_cell(MEMORY, config(kind, residual=False))(memory, inputs), memory)


@pytest.mark.parametrize("kind", ["mlp", "gated", "delta", "transformer"])
def test_what_starts_at_zero_reads_the_input_from_the_first_step(kind):
    """Else it must first move on memory alone, which in a Transformer cell cost BPTT a plateau."""
    torch.manual_seed(0)
    memory = memory_of(kind)
    cell = build_cell(memory, config(kind))
    assert not cell.out.weight.any()
    start = torch.randn(3, memory.tokens, memory.width)

    def gradient(seed):
        inputs = torch.randn(3, memory.width, generator=torch.Generator().manual_seed(seed))
        (cell(start, inputs) * torch.arange(1.0, start.numel() + 1).view_as(start)).sum().backward()
        grad, cell.out.weight.grad = cell.out.weight.grad, None
        return grad

    assert (gradient(1) - gradient(2)).norm() > 0.1 * gradient(1).norm()


FAST = [name for name, cell in BUILT_IN.items() if hasattr(cell, "rollout")]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", FAST)
def test_cells_fast_rollout_equals_its_steps(kind, layers):
    torch.manual_seed(0)
    cell = randomise(build_cell(memory_of(kind), config(kind, layers=layers))).double()
    memory = torch.randn(3, memory_of(kind).tokens, 4, dtype=torch.float64)
    inputs = torch.randn(3, 5, 4, dtype=torch.float64)
    memory.requires_grad_(True)
    inputs.requires_grad_(True)
    fast, slow = cell.rollout(memory, inputs), []
    for t in range(5):
        slow.append(cell(slow[-1] if slow else memory, inputs[:, t]))
    slow = torch.stack(slow, 1)
    assert_close(fast, slow)
    with torch.no_grad():
        assert_close(cell.rollout(memory, inputs), slow)
    weights = torch.randn_like(fast)
    found = []
    for loss in ((fast * weights).sum(), (slow * weights).sum()):
        of_arguments = torch.autograd.grad(loss, (memory, inputs), retain_graph=True)
        found.append(gradients(loss, cell) | dict(zip(("memory", "inputs"), of_arguments, strict=True)))
    assert_close(*found)
    assert all(grad.abs().sum() > 0 for grad in found[0].values())


@pytest.mark.parametrize("kind", FAST)
def test_fast_rollouts_in_bfloat16_are_those_of_float32_but_for_rounding(kind):
    torch.manual_seed(0)
    cell, tokens = build_cell(memory_of(kind), config(kind, layers=1)), memory_of(kind).tokens
    if kind == "delta":  # as it starts: addresses between large weights are differences, which rounding turns
        nn.init.normal_(cell.out.weight, std=0.05)
    else:
        randomise(cell)
    memory, inputs, weights = torch.randn(3, tokens, 4), torch.randn(3, 5, 4), torch.randn(3, 5, tokens, 4)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            rolled = cell.rollout(memory, inputs)
        found.append(gradients((rolled.float() * weights).sum(), cell) | {"memories": rolled.float()})
    # What an Elman cell remembers is a tanh of a product, which would be rounded with it.
    assert torch.equal(found[0]["memories"], found[1]["memories"]) == (kind == "elman")
    for name, exact in found[0].items():
        assert (found[1][name] - exact).norm() < 0.05 * exact.norm(), name


def test_own_cell_by_name_and_as_instance():
    for rnn in (
        RNN(VOCAB, MEMORY, READOUT, config(f"{__name__}:OwnCell")),
        RNN(VOCAB, MEMORY, READOUT, config("gru"), cell=OwnCell(MEMORY, None)),
    ):
        assert isinstance(rnn.cell, OwnCell) and "cell.mix.weight" in dict(rnn.named_parameters())
        logits, memory = rnn(torch.randint(VOCAB, (3, 5)))
        assert logits.shape == (3, 5, VOCAB) and memory.shape == (3, 2, 4)
        logits.sum().backward()
        assert (rnn.cell.mix.weight.grad != 0).any()


WRONG = {
    "nowhere.at.all:Cell": "cannot build nowhere.at.all:Cell.*No module named 'nowhere'",
    f"{__name__}:Missing": "cannot build .*:Missing.*has no attribute 'Missing'",
    f"{__name__}:WrongInit": r"cannot build .*:WrongInit as Class\(memory_config, cell_config\).*positional argument",
    f"{__name__}:not_a_module": "not_a_module is a function, not an nn.Module",
    f"{__name__}:WrongForward": r":WrongForward must take forward\(memory \(3, 2, 4\), inputs \(3, 4\)\).*positional",
    f"{__name__}:WrongShape": r":WrongShape returned \(3, 8\), not a memory of shape \(3, 2, 4\)",
    f"{__name__}:WrongType": r":WrongType returned tuple, not a memory of shape \(3, 2, 4\)",
    f"{__name__}:Whole": ":Whole returned .*not a memory",
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_cells_by_name_are_refused(kind):
    with pytest.raises(ValueError, match=WRONG[kind]) as caught:
        RNN(VOCAB, MEMORY, READOUT, config(kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cell, message",
    [
        (WrongShape(MEMORY, None), r"cell: WrongShape returned \(3, 8\)"),
        (WrongForward(MEMORY, None), "cell: WrongForward must take forward"),
        (lambda memory, inputs: memory, "cell: function is a function, not an nn.Module"),
    ],
)
def test_wrong_cells_as_instances_are_refused(cell, message):
    with pytest.raises(ValueError, match=message):
        RNN(VOCAB, MEMORY, READOUT, config(), cell=cell)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"cell\.kind: 'lsmt' is none of transformer, mlp, .*module:Class"):
        config("lsmt")


def test_gated_cell_is_its_formula():
    torch.manual_seed(0)
    cell = randomise(build_cell(MEMORY, config("gated", layers=1))).double()
    memory, inputs = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    memory.requires_grad_(True)
    rows = []
    for m, x in zip(memory.flatten(1), inputs, strict=True):
        normed = m / (m.square().mean() + 1e-6).sqrt() * cell.norm.gain
        mixed = cell.from_memory.weight @ normed + cell.from_memory.bias + cell.from_input.weight @ x
        hidden = mixed[:8].clamp_min(0) ** 2
        both = cell.out.weight @ hidden + cell.out.bias + mixed[8:]
        gate = 1 / (1 + (-both[8:]).exp())
        rows.append((1 - gate) * m + gate * both[:8])
    slow, fast = torch.stack(rows).view(3, 2, 4), cell(memory, inputs)
    assert_close(fast, slow)
    for a, b in zip(*(torch.autograd.grad(out.pow(2).sum(), memory) for out in (fast, slow)), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_residual_cells_are_their_formula(kind):
    torch.manual_seed(0)
    cell = randomise(build_cell(MEMORY, config(kind, layers=1))).double()
    memory, inputs, rows = torch.randn(3, 2, 4).double(), torch.randn(3, 4).double(), []
    for m, x in zip(memory, inputs, strict=True):
        if kind == "transformer":
            tokens = torch.cat([cell.from_memory(m) + cell.positions, cell.from_input(x)[None]])
            rows.append(m + cell.out(cell.transformer(tokens[None])[0, :2]))
        else:
            normed = m.flatten() / (m.square().mean() + 1e-6).sqrt() * cell.norm.gain
            rows.append(m + cell.out((cell.from_memory(normed) + cell.from_input(x)).clamp_min(0) ** 2).view(2, 4))
    assert_close(cell(memory, inputs), torch.stack(rows))


@pytest.mark.parametrize("kind, plain", [("gru", nn.GRUCell), ("elman", nn.RNNCell), ("lstm", nn.LSTMCell)])
def test_pytorchs_own_cells_work_on_a_quarter_of_memory(kind, plain):
    torch.manual_seed(0)
    cell = randomise(build_cell(MEMORY, config(kind))).double()
    twin = plain(4, 4 if kind == "lstm" else 8).double()
    names = {n.removeprefix("cell.").removesuffix("_l0"): v for n, v in cell.state_dict().items()}
    twin.load_state_dict(names)
    memory, inputs = torch.randn(3, 2, 4).double(), torch.randn(3, 4).double()
    state = memory.flatten(1) / 4
    new = torch.cat(twin(inputs, tuple(state.chunk(2, 1))), 1) if kind == "lstm" else twin(inputs, state)
    assert_close(cell(memory, inputs), 4 * new.view(3, 2, 4))


def test_gated_cell_starts_by_keeping_most_of_memory():
    memory, inputs = torch.randn(64, 2, 4), torch.zeros(64, 4)
    after = build_cell(MEMORY, config("gated"))(memory, inputs)
    assert (after * memory).mean() > 0.5 * memory.square().mean()


class OwnMLP(BUILT_IN["mlp"]):
    """Made of a shipped cell, but with the signature that users are told of."""

    def forward(self, memory, inputs):
        return super().forward(memory, inputs).tanh()


class OwnGated(BUILT_IN["gated"]):
    def forward(self, memory, inputs, projected=False):
        return super().forward(memory, inputs, projected).tanh()


@pytest.mark.parametrize("kind", [OwnMLP, OwnGated])
def test_a_cell_made_of_a_shipped_one_is_trained_as_it_steps(kind):
    """A rollout that it inherits is that of another function."""
    memory = MemoryConfig(tokens=2, width=4, norm="batch")
    rnn = RNN(VOCAB, memory, READOUT, config(layers=1), cell=kind(memory, config(layers=1)))
    randomise(rnn)
    tokens, m = torch.randint(VOCAB, (3, 7)), torch.randn(3, 2, 4)
    rolled, stepped = rnn.rollout(tokens, m), []
    for token in tokens.unbind(1):
        m = rnn.step(token, m)[1]
        stepped.append(m)
    assert_close(rolled, torch.stack(stepped, 1))
    assert rolled.abs().max() <= 1
    assert not rnn.cuts


@pytest.mark.parametrize("addresses", ["inputs", "memory"])
def test_delta_cell_is_its_formula(addresses):
    torch.manual_seed(0)
    memory_config, hidden, n = MemoryConfig(tokens=4, width=16, norm="batch"), 8, 4  # two stores of 4 x 4
    cell = randomise(build_cell(memory_config, config("delta", addresses=addresses))).double()
    memory, inputs = torch.randn(3, 4, 16, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    rows = []
    for m, x in zip(memory, inputs, strict=True):
        last = torch.cat([cell.from_input.weight @ x, m[1, :12]])  # the input as 4 numbers, then the three before it
        normed = m[0] / (m[0].square().mean() + 1e-6).sqrt() * cell.norm.gain
        of_memory, mixed = cell.from_memory.weight @ normed + cell.from_memory.bias, cell.from_last.weight @ last
        if addresses == "memory":
            mixed += of_memory
        else:
            mixed[: hidden + 32] += of_memory[: hidden + 32]
            mixed[-2 * n - 2 :] += of_memory[-2 * n - 2 :]
        gated, ask, where, value, rate = mixed.split((hidden + 32, 2 * n, 2 * n, 2 * n, 2))
        reads, stores = [], []
        for i in range(2):
            store = m[2 + i].view(n, n)
            at, to = (a.view(2, n)[i] / a.view(2, n)[i].norm() for a in (ask, where))
            reads.append(store.t() @ at)
            new = torch.sigmoid(rate[i]) * (value.view(2, n)[i] - store.t() @ to)
            stores.append((store + torch.outer(to, new)).flatten())
        gated = gated + cell.from_store.weight @ torch.cat(reads)
        both = cell.out.weight @ gated[:hidden].clamp_min(0) ** 2 + cell.out.bias + gated[hidden:]
        gate = torch.sigmoid(both[16:])
        rows.append(torch.stack([(1 - gate) * m[0] + gate * both[:16], last, *stores]))
    assert_close(cell(memory, inputs), torch.stack(rows))


def test_what_a_delta_cell_has_written_it_reads_where_it_was_written():
    """Two things at addresses apart; one of them is written anew, the other stays."""
    cell = build_cell(MemoryConfig(tokens=3, width=16, norm="batch"), config("delta"))
    store, (left, right) = torch.zeros(1, 1, 4, 4), torch.eye(4)[:2]
    first, second, third = torch.randn(3, 4)
    with torch.no_grad():
        for part in (cell.from_memory, cell.from_store):
            part.weight.zero_()
        cell.from_memory.bias.zero_()
        for where, value in ((left, first), (right, second), (left, third)):
            gated = torch.zeros(cell.split[0])
            said = torch.cat([gated, left, 3 * where, value, torch.tensor([100.0])])  # of any length, at rate 1
            _, store = cell.step(torch.zeros(1, 16), store, said[None])
    assert_close(store[0, 0, 0], third)
    assert_close(store[0, 0, 1], second)


def test_a_new_delta_cell_reads_what_followed_the_same_token():
    torch.manual_seed(0)
    cell = build_cell(MemoryConfig(tokens=3, width=256, norm="batch"), config("delta"))
    _, of_addresses, of_values, _ = cell.from_last.weight.split(cell.split)
    memory, inputs = torch.zeros(50, 3, 256), torch.randn(50, 9, 256)
    inputs[:, 8] = inputs[:, 2]
    with torch.no_grad():
        of_values[:, 64:] = 0  # a value is of its own token alone
        before = cell.rollout(memory, inputs)[:, 7]
        last = torch.cat([cell.from_input(inputs[:, 8]), before[:, 1, :192]], -1)
        at = torch.nn.functional.normalize(last @ of_addresses[:16].T, dim=-1)
        read = (at[:, None] @ before[:, 2].view(50, 16, 16))[:, 0]
        values = cell.from_input(inputs) @ of_values[:, :64].T
    closest = torch.cosine_similarity(read[:, None], values, dim=-1).argmax(1)
    assert (closest == 3).float().mean() > 0.5


def test_a_cell_of_ones_own_may_be_of_another_dtype():
    assert check_cell(OwnCell(MEMORY, None).double(), MEMORY, "mine").mix.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "kind, memory, words",
    [("delta", MemoryConfig(), "2 x 128: the delta cell needs 3"), ("lstm", MemoryConfig(tokens=1, width=9), "even")],
)
def test_a_memory_that_a_cell_cannot_have_is_refused_where_it_is_built(kind, memory, words):
    with pytest.raises(ValueError, match=words):
        build_cell(memory, CellConfig(kind=kind))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("streams", [(3, 2), (1, 2), (2, 1), (2, 0)], ids=str)
def test_a_memory_for_each_stream_or_a_clear_line(kind, layers, streams):
    """None is read by all, nor does one read all, whichever way a cell is called."""
    memories, rows = streams
    memory_config = memory_of(kind, "batch")
    cell = build_cell(memory_config, config(kind, layers=layers))
    memory = torch.randn(memories, memory_config.tokens, memory_config.width)
    ways = [lambda: cell(memory, torch.randn(rows, 4))]
    if hasattr(cell, "rollout"):
        ways.append(lambda: cell.rollout(memory, torch.randn(rows, 5, 4)))
    if hasattr(cell, "from_input"):
        ways.append(lambda: cell(memory, cell.from_input(torch.randn(rows, 4)), projected=True))
    for way in ways:
        with pytest.raises(UserError) as caught:
            way()
        assert str(caught.value) == (
            f"memory: {memories} streams, but tokens of {rows}; give one memory for each stream"
        )
