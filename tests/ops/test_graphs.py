"""Which graphs are captured and kept. Capturing itself is for a GPU: tests/test_cuda.py. Here a graph is a stand-in."""

import copy
import gc

import pytest
import torch

from naive import batch, models, smt_config
from retain.config import DMTConfig
from retain.model.compiling import fast_parts
from retain.model.fast import using
from retain.model.rnn import _GRAPHS
from retain.objectives import BPTT, DMT, SMT
from retain.ops import delta_rollout, gated_rollout, graphs
from retain.ops.graphs import Replayed


class StandIn:
    """A graph that computes when it is replayed; like a real one it holds the inputs of one call at a time."""

    made = 0
    size = 10
    device = torch.device("cpu")

    def __init__(self, function, args, module, graded):
        StandIn.made += 1
        self.function, self.graded, self.weights = function, graded, list(module.parameters()) if module else []
        self.constants = [None if isinstance(x, torch.Tensor) else (x,) for x in args]

    def __call__(self, tensors):
        with torch.set_grad_enabled(self.graded):
            self.inputs = [x.detach().clone().requires_grad_(x.requires_grad and self.graded) for x in tensors]
            given = iter(self.inputs)
            self.outputs = self.function(*(next(given) if x is None else x[0] for x in self.constants))
        return tuple(x.detach().clone() for x in self.outputs)

    def backward(self, grads):
        wanted = [x for x in (*self.inputs, *self.weights) if x.requires_grad]
        roots = [(x, grad) for x, grad in zip(self.outputs, grads, strict=True) if x.requires_grad]
        outputs, of_outputs = [x for x, _ in roots], [grad for _, grad in roots]
        found = iter(torch.autograd.grad(outputs, wanted, of_outputs, allow_unused=True))
        return [next(found) if x.requires_grad else None for x in (*self.inputs, *self.weights)]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(graphs, "_Graph", StandIn)
    monkeypatch.setattr(graphs, "is_capturable", lambda tensors: graphs._on)
    monkeypatch.setattr(graphs, "_state", lambda: ())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("", (), {"total_memory": 1_000_000}))
    monkeypatch.setattr(StandIn, "made", 0)
    graphs.forget()
    yield
    graphs.forget()


def doubled(x):
    return (2 * x,)


def test_shapes_are_captured_when_they_come_again():
    replayed = Replayed(doubled)
    for turn, made in enumerate((0, 1, 1, 1)):
        x = torch.full((3,), float(turn))
        assert replayed(x)[0].tolist() == (2 * x).tolist() and StandIn.made == made
    replayed(torch.ones(4))
    assert StandIn.made == 1, "another shape, for the first time"
    replayed(torch.ones(3, dtype=torch.float64))
    replayed(torch.ones(3, dtype=torch.float64))
    assert StandIn.made == 2, "another dtype"
    assert Replayed(doubled, at_first=True)(x)[0].tolist() == (2 * x).tolist() and StandIn.made == 3


class Scaled(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full(size, 3.0))

    def forward(self, x, factor=1):
        return (factor * x * x * self.weight,)


def test_constants_weights_and_gradients_tell_graphs_apart():
    module, x = Scaled((3,)), torch.ones(3)
    replayed = Replayed(module, module, at_first=True)
    assert replayed(x, 2)[0].tolist() == [6, 6, 6]
    assert replayed(x, 3)[0].tolist() == [9, 9, 9]
    with torch.no_grad():
        assert not replayed(x, 3)[0].requires_grad
    assert StandIn.made == 3
    module.weight.requires_grad_(False)
    assert not replayed(x.requires_grad_(), 3)[0].sum().backward() and x.grad.tolist() == [18, 18, 18]
    assert StandIn.made == 4, "a frozen weight"
    module.weight = torch.nn.Parameter(module.weight.clone())
    replayed(x, 3)
    assert StandIn.made == 5, "weights that lie elsewhere"


def test_calls_that_wait_for_their_gradient_do_not_share_a_graph():
    module = Scaled(())
    replayed = Replayed(module, module, at_first=True)
    one, two = (torch.tensor(v, requires_grad=True) for v in (1.0, 5.0))
    (first,), (second,) = replayed(one), replayed(two)
    (first + 10 * second).backward()
    assert (one.grad, two.grad, module.weight.grad) == (6, 300, 251)
    assert StandIn.made == 2
    del first, second
    replayed(one)[0].backward()
    assert StandIn.made == 2 and module.weight.grad == 252, "both are free again"
    replayed(one)
    replayed(one)
    assert StandIn.made == 2, "one whose gradient nobody will take is free, too"


def test_a_capture_sees_other_parameters_of_the_same_memory():
    module = torch.nn.Sequential(Scaled((2,)), Scaled((2,)))
    module[1].weight = module[0].weight  # tied
    own = module[0].weight
    with graphs._stand_ins(module) as weights:
        assert len(weights) == 1 and module[0].weight is module[1].weight is weights[0] is not own
        assert weights[0].data_ptr() == own.data_ptr() and weights[0].requires_grad
    assert module[0].weight is module[1].weight is own


def test_where_there_are_too_many_shapes_the_rest_is_launched(monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 2)
    replayed = Replayed(doubled, at_first=True)
    for length in (1, 2, 3, 3, 1):
        assert replayed(torch.ones(length))[0].tolist() == [2] * length
    assert StandIn.made == 2


def test_a_gradient_is_taken_once():
    x = torch.tensor(1.0, requires_grad=True)
    (y,) = Replayed(lambda x: (x * x,), at_first=True)(x)
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="computed already"):
        y.backward()


def test_weights_that_changed_before_the_way_back_are_refused():
    module = Scaled(())
    (y,) = Replayed(module, module, at_first=True)(torch.tensor(2.0))
    with torch.no_grad():
        module.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_what_finds_no_room_is_launched_until_the_others_are_forgotten(monkeypatch):
    monkeypatch.setattr(StandIn, "size", 100_000)
    replayed, other = Replayed(doubled, at_first=True), Replayed(doubled, at_first=True)  # room for two in all
    for length in (1, 2, 3, 3, 1):
        assert replayed(torch.ones(length))[0].tolist() == [2] * length
    assert StandIn.made == 3 and len(replayed.idle) == 2, "the third is tried once"
    assert other(torch.ones(1))[0].tolist() == [2] and not other.idle
    made = StandIn.made
    assert replayed(torch.ones(2))[0].tolist() == [2, 2] and StandIn.made == made, "those that are there are used"
    graphs.forget()
    other(torch.ones(1))
    assert other.idle and not replayed.idle


def test_of_calls_that_wait_some_are_replayed_and_the_rest_launched(monkeypatch):
    monkeypatch.setattr(StandIn, "size", 100_000)
    module = Scaled(())
    replayed = Replayed(module, module, at_first=True)
    for turn in range(2):
        xs = [torch.tensor(float(n), requires_grad=True) for n in range(4)]
        sum(replayed(x)[0] for x in xs).backward()
        assert [x.grad.item() for x in xs] == [0, 6, 12, 18]
        assert StandIn.made == 3, f"two, and one that found no room; turn {turn}"


def test_out_of_memory_one_shape_is_launched(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(graphs, "_Graph", full)
    replayed = Replayed(doubled, at_first=True)
    assert replayed(torch.ones(1))[0].tolist() == [2] and replayed(torch.ones(1))[0].tolist() == [2]
    monkeypatch.setattr(graphs, "_Graph", StandIn)
    replayed(torch.ones(2))
    assert StandIn.made == 1


def test_what_is_called_within_a_capture_is_launched(monkeypatch):
    inner, within = Replayed(doubled, at_first=True), []

    class Capturing(StandIn):
        def __init__(self, function, args, module, graded):
            function(*args)  # as a real one does first
            within.append(dict(inner.idle))
            super().__init__(function, args, module, graded)

    monkeypatch.setattr(graphs, "_Graph", Capturing)
    assert Replayed(lambda x: inner(x), at_first=True)(torch.ones(1))[0].item() == 2
    assert within[0] == {}


def test_a_long_rollout_is_launched(monkeypatch):
    monkeypatch.setattr(graphs, "LONGEST", 2)
    replayed = Replayed(doubled, at_first=True, steps=0)
    for length, made in ((3, 0), (2, 1)):
        assert replayed(torch.ones(length))[0].tolist() == [2] * length and StandIn.made == made


def test_where_it_is_to_be_launched_nothing_is_captured(monkeypatch):
    replayed = Replayed(doubled, at_first=True)
    with graphs.launched():
        assert replayed(torch.ones(1))[0].item() == 2
    assert StandIn.made == 0
    monkeypatch.undo()
    assert replayed(torch.ones(1))[0].item() == 2 and not replayed.idle, "on a CPU"


CELLS = {
    "gated": gated_rollout.replayed_forward,
    "delta": delta_rollout.replayed_forward,
    "transformer": None,
    "mlp": None,
    "lstm": None,
}
"""Cells whose rollouts are replayed, and by what: else by the RNN's own."""


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("phase", ["smt", "dmt", "dmt alone", "bptt", "bptt cut"])
def test_objectives_are_the_same_replayed(cell, phase, monkeypatch):
    teacher, rnn = models(cell=cell, layers=1)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    objective = {
        "smt": lambda: SMT(teacher, rnn, smt_config(bptt_window=4, on_policy=0.5, decodes_per_sequence=2), 2),
        "dmt": lambda: DMT(teacher, rnn, DMTConfig(horizon=2, horizon_growth=0.0, bptt_window=4, lambda_distill=1.0)),
        "dmt alone": lambda: DMT(teacher, rnn, DMTConfig(horizon_growth=0.0, bptt_window=4), True),
        "bptt": lambda: BPTT(rnn),
        "bptt cut": lambda: BPTT(rnn, 4),
    }[phase]()

    def of(turn):
        objective.zero_grad()
        torch.manual_seed(turn % 2)
        losses = objective(batch(4, 12, seed=turn))
        losses["loss"].backward()
        return [*losses.values(), *(p.grad for p in objective.parameters() if p.grad is not None)]

    with using(fast_parts(rnn, teacher)):
        for turn in range(6):
            statistics = copy.deepcopy(teacher.norm.state_dict())
            replayed = [x.detach().clone() for x in of(turn)]
            teacher.norm.load_state_dict(statistics)
            with graphs.launched():
                for x, y in zip(replayed, of(turn), strict=True):
                    torch.testing.assert_close(x, y)
            with torch.no_grad():
                for p in objective.parameters():
                    p.mul_(0.99)
        rollouts = CELLS[cell] or _GRAPHS[rnn]
        assert rollouts.idle, "not a comparison of launches with launches"
        parts = [r for r in graphs._ALL if r.module and r.module() in (teacher.encoder, teacher.decoder, rnn.readout)]
        wanted = {"smt": 3, "dmt": 3 if phase == "dmt" else 2, "bptt": 1}[phase.split()[0]]
        assert sum(bool(part.idle) for part in parts) == wanted


def test_another_cell_is_captured_anew(monkeypatch):
    _, rnn = models(cell="mlp")
    tokens = batch(2, 5)["tokens"]

    def gradient():
        rnn.zero_grad()
        rnn.rollout(tokens, rnn.init_memory(2)).sum().backward()
        return rnn.cell.out.weight.grad

    for _ in range(3):
        gradient()
    assert StandIn.made == 1
    rnn.cell = copy.deepcopy(rnn.cell)
    for _ in range(3):
        found = gradient().clone()
    assert StandIn.made == 2
    with graphs.launched():
        torch.testing.assert_close(found, gradient())


def test_graphs_go_with_their_rnn():
    _, rnn = models(cell="mlp")
    for _ in range(2):
        with torch.no_grad():
            rnn.rollout(batch(2, 5)["tokens"], rnn.init_memory(2))
    before = len(graphs._ALL)
    del rnn
    gc.collect()
    assert len(graphs._ALL) < before
