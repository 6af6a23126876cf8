"""How many applications of f a gradient goes back through: under one-step supervision never more than one."""

import dataclasses

import pytest
import torch

from conftest import tiny
from naive import batch, models
from retain.config import CELLS, DMTLoss, SMTLoss
from retain.config.presets import PRESETS
from retain.config.recipes import RECIPES, default_recipe, with_language_model, with_recipe
from retain.errors import UserError
from retain.model.rnn import RNN
from retain.objectives import BPTT, DMT, SMT

LENGTH = 6


class Count(torch.autograd.Function):
    """What f makes, marked so that its place in the graph can be found again."""

    @staticmethod
    def forward(ctx, memory):
        return memory.view_as(memory)

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.fixture
def counted(monkeypatch):
    """Every application of f leaves a mark; rollouts go step by step, each step an application."""
    advance = RNN.advance

    def marked(self, memory, inputs):
        return Count.apply(advance(self, memory, inputs))

    def rollout(self, tokens, memory, cut=None):
        memories = []
        for t, token in enumerate(tokens.unbind(1)):
            if cut is not None and t >= cut[0] and (t - cut[0]) % cut[1] == 0:
                memory = memory.detach()
            memory = self.update(memory, token)
            memories.append(memory)
        return torch.stack(memories, 1)

    monkeypatch.setattr(RNN, "advance", marked)
    monkeypatch.setattr(RNN, "rollout", rollout)


def longest_path(loss):
    """The most marks on one way back from the loss."""
    depth, stack = {None: 0}, [loss.grad_fn]
    while stack:
        node = stack[-1]
        behind = [n for n, _ in node.next_functions]
        todo = [n for n in behind if n not in depth]
        if todo:
            stack += todo
            continue
        depth[stack.pop()] = max((depth[n] for n in behind), default=0) + ("Count" in type(node).__name__)
    return depth[loss.grad_fn]


SMT_ONE_STEP = [
    {},
    {"on_policy": 1.0},
    {"on_policy": 0.5, "lambda_distill": 1.0},
    {"steps_per_sequence": 3},
    {"decodes_per_sequence": 1},
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ["state", "register", "window"])
@pytest.mark.parametrize("settings", SMT_ONE_STEP, ids=str)
def test_no_loss_of_smt_has_a_gradient_past_one_step(kind, cell, settings, counted):
    objective = SMT(*models(kind, cell), SMTLoss(**settings), 3)
    losses = objective(batch(length=LENGTH))
    assert max(longest_path(loss) for loss in losses.values() if loss.grad_fn is not None) == 1
    assert longest_path(losses["loss_dyn"]) == longest_path(losses["loss"]) == 1


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "settings", [{}, {"predictive": False}, {"lambda_distill": 1.0}, {"lambda_dec": 1.0}, {"label_every": 2}], ids=str
)
def test_no_loss_of_dmt_has_a_gradient_past_one_step(cell, progress, settings, counted):
    objective = DMT(*models(cell=cell), DMTLoss(**settings), future_len=3)
    losses = objective(batch(length=LENGTH) | {"progress": progress})
    assert max(longest_path(loss) for loss in losses.values() if loss.grad_fn is not None) == 1


@pytest.mark.parametrize("window", [1, 2, 3, 6, None])
def test_the_count_finds_longer_paths_where_they_are(window, counted):
    """Else a path of one would prove nothing."""
    path = window or LENGTH
    data = batch(length=LENGTH)
    assert longest_path(BPTT(models(cell="mlp")[1], window)(data)["loss"]) == path
    assert longest_path(DMT(*models(cell="mlp"), DMTLoss(bptt_window=window))(data)["loss"]) == path
    assert longest_path(SMT(*models(cell="mlp"), SMTLoss(bptt_window=window), 3)(data)["loss"]) == path


@pytest.mark.parametrize("name", PRESETS)
def test_the_recipes_change_how_f_is_trained_and_nothing_else(name):
    preset = PRESETS[name]()
    one, hybrid = (with_recipe(preset, recipe) for recipe in RECIPES)
    assert one.longest_gradient_path == 1 < hybrid.longest_gradient_path
    assert with_recipe(one, "hybrid") == hybrid and with_recipe(hybrid, "one-step") == one
    assert hybrid == preset or preset.longest_gradient_path == 1, (
        "the presets' own recipe is the hybrid, but the paper's"
    )
    assert (one.smt.lr, one.smt.lambda_dyn, one.cell, one.memory) == (
        *(preset.smt.lr, preset.smt.lambda_dyn, preset.cell, preset.memory),
    )


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({}, 1),
        ({"smt__bptt_window": 4}, 4),
        ({"smt__bptt_window": None}, 8),
        ({"smt__bptt_window": None, "smt__steps_per_sequence": 5}, 5),
        ({"smt__bptt_window": None, "smt__num_chunks": 4}, 2),
        ({"dmt__bptt_window": 16}, 8),
        ({"phases": ("bptt",)}, 4),
        ({"phases": ("smt", "dmt", "bptt"), "bptt__bptt_window": None}, 8),
        ({"phases": ("smt",), "dmt__bptt_window": None}, 1),
    ],
)
def test_a_run_knows_its_longest_gradient_path(changes, path):
    assert tiny(**changes).longest_gradient_path == path


def test_a_readout_as_wide_as_a_language_model_can_be_split_into_heads():
    base = PRESETS["text"]()
    base = dataclasses.replace(base, teacher=dataclasses.replace(base.teacher, from_="model"))
    made = with_language_model(base, 20)
    assert (made.memory.width, made.teacher.width) == (20, 24)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(UserError, match="recipe: 'two-step' is none of one-step, hybrid, language-model"):
        with_recipe(PRESETS["stdlib"](), "two-step")
    assert default_recipe("transformer") == "one-step" and default_recipe("gated") == "hybrid"
