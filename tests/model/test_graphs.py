"""Which graphs are captured and kept. Capturing itself is for a GPU: tests/test_cuda.py. Here a graph is a stand-in."""

import logging

import pytest
import torch

from retain.model import graphs
from retain.model.graphs import Replayed


class StandIn:
    """A graph that computes when it is replayed; like a real one it holds the inputs of one call at a time."""

    made = 0
    size = 10
    fails = False

    def __init__(self, function, args, module, graded):
        if StandIn.fails:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        StandIn.made += 1
        self.function, self.graded, self.weights = function, graded, list(module.parameters()) if module else []
        self.constants = [x for x in args if not isinstance(x, torch.Tensor)]

    def __call__(self, tensors):
        with torch.set_grad_enabled(self.graded):
            self.inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in tensors]
            self.outputs = self.function(*self.inputs, *self.constants)
        return tuple(x.detach().clone() for x in self.outputs)

    def backward(self, grads):
        wanted = [x for x in (*self.inputs, *self.weights) if x.requires_grad]
        found = iter(torch.autograd.grad(self.outputs, wanted, grads, allow_unused=True))
        return [next(found) if x.requires_grad else None for x in (*self.inputs, *self.weights)]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(graphs, "_Graph", StandIn)
    monkeypatch.setattr(graphs, "capturable", lambda tensors: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("", (), {"total_memory": 1000}))
    monkeypatch.setattr(StandIn, "made", 0)
    monkeypatch.setattr(graphs, "_ALL", set())


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
    with pytest.raises(RuntimeError, match="taken already"):
        y.backward()


def test_the_graphs_that_were_not_used_for_longest_make_room(monkeypatch):
    monkeypatch.setattr(StandIn, "size", 100)
    replayed = Replayed(doubled, at_first=True)  # 1000 / SHARE: two of them
    for length in (1, 2, 1, 3):
        replayed(torch.ones(length))
    assert StandIn.made == 3
    replayed(torch.ones(1))
    assert StandIn.made == 3 and replayed.held == 200
    replayed(torch.ones(2))
    assert StandIn.made == 4
    other = Replayed(doubled, at_first=True)
    assert other(torch.ones(1))[0].tolist() == [2] and other.held == 0, "what all hold together counts"


def test_what_is_too_large_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(StandIn, "size", 500)
    replayed = Replayed(doubled, at_first=True)
    for _ in range(3):
        assert replayed(torch.ones(2))[0].tolist() == [2, 2]
    assert StandIn.made == 1 and replayed.held == 0
    monkeypatch.setattr(StandIn, "size", 5)
    replayed(torch.ones(1))
    assert StandIn.made == 2, "others are replayed"


def test_where_nothing_can_be_captured_it_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(StandIn, "fails", True)
    replayed = Replayed(doubled, at_first=True)
    with caplog.at_level(logging.WARNING, "retain"):
        assert [replayed(torch.ones(1))[0].item() for _ in range(2)] == [2, 2]
    assert [record.message for record in caplog.records] == [
        "CUDA graphs: no capture (operation not permitted); going on without"
    ]


def test_on_a_cpu_nothing_is_captured(monkeypatch):
    monkeypatch.undo()
    replayed = Replayed(doubled, at_first=True)
    assert replayed(torch.ones(1))[0].item() == 2 and not replayed.seen
