"""DMT in parallel equals the detached loop: nothing flows through time, and the teacher does not move."""

import pytest
import torch

import naive
from naive import VOCAB, assert_close, batch, gradients, models, smt_config
from retain.config import CELLS, IGNORE, DMTConfig
from retain.objectives import BPTT, DMT, SMT, rollout_from_teacher, unroll
from retain.objectives.segments import own_memories, unroll_alone

CASES = [*((cell, norm) for cell in CELLS for norm in ("rms", "batch")), ("gated", "fsq"), ("transformer", "fsq")]


def config(**changes):
    """The RNN alone from m_0 for the whole phase; all that matters is written out."""
    plain = {
        "horizon": None,
        "horizon_growth": 0.7,
        "lambda_dyn": 0.8,
        "lambda_readout": 0.6,
        "lambda_distill": 0.0,
        "predictive": True,
    }
    return DMTConfig(**(plain | changes))


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("predictive", [True, False])
def test_dmt_equals_the_detached_loop(case, predictive):
    objective = DMT(*(both := models(cell=case[0], norm=case[1])), config(predictive=predictive))
    fast, slow = objective(batch()), naive.dmt(*both, objective.config, batch())
    assert fast["horizon"] == 6
    assert_close({name: fast[name] for name in slow}, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))


@pytest.fixture
def begin(monkeypatch):
    """`begin(steps)` tells where segments of so many steps begin, in all that DMT unrolls from then on."""

    def seed(steps, seed=5):
        for function in (unroll, unroll_alone):

            def seeded(*args, function=function):
                torch.manual_seed(seed)
                return function(*args)

            monkeypatch.setattr(f"retain.objectives.dmt.{function.__name__}", seeded)
        torch.manual_seed(seed)
        return int(torch.randint(steps, ()))

    return seed


@pytest.mark.parametrize("steps", [2, 4, 6, 9])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_unrolled_dmt_equals_the_loop_cut_every_so_many_steps(case, steps, begin):
    offset = begin(steps)
    objective = DMT(*(both := models(cell=case[0], norm=case[1])), config(bptt_window=steps))
    fast = objective(batch())
    slow = naive.dmt(*both, objective.config, batch(), offset=offset if steps < 6 else 0)
    assert_close({name: fast[name] for name in slow}, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))


@pytest.mark.parametrize("steps", [2, 4, 6, 9])
@pytest.mark.parametrize("cell, layers", [("gated", 1), ("delta", 1), ("mlp", 2)])
def test_one_pass_equals_a_rollout_and_then_segments(cell, layers, steps, monkeypatch):
    """The RNN alone from m_0: where its rollout is what is trained, and where it is not, nothing else changes."""
    objective = DMT(*models(cell=cell, layers=layers), config(bptt_window=steps))
    alone = objective.is_alone(6, 6)
    assert alone == (cell != "mlp" or steps >= 6)
    found = []
    for one_pass in (alone, False):
        monkeypatch.setattr(objective, "is_alone", lambda *_, one_pass=one_pass: one_pass)
        torch.manual_seed(3)
        losses = objective(batch())
        found.append(losses | gradients(losses["loss"], objective))
    assert_close(*found)


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_the_gradient_flows_through_a_segment_and_no_further(steps):
    teacher, rnn = models()
    objective = DMT(teacher, rnn, config(lambda_dyn=0.0, lambda_readout=1.0, bptt_window=steps))
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])
    targets = torch.full((1, 7), IGNORE)
    targets[0, 6] = 3  # the one loss there is looks at m_6, which f made from x_5
    furthest = 0
    for seed in range(20):
        torch.manual_seed(seed)
        objective.zero_grad()
        objective({"tokens": tokens, "targets": targets})["loss"].backward()
        reached = (rnn.embed.weight.grad != 0).any(1).tolist()[:6]
        assert reached == sorted(reached), "the last steps, and none before"
        furthest = max(furthest, sum(reached))
    assert furthest == steps


@pytest.mark.parametrize("trunk_trained", [True, False])
@pytest.mark.parametrize("kind", ["state", "register", "window"])
def test_distillation_equals_the_detached_loop(kind, trunk_trained):
    objective = DMT(*(both := models(kind)), config(lambda_distill=0.4), trunk_trained)
    fast, slow = objective(batch()), naive.dmt(*both, objective.config, batch(), trunk_trained)
    assert_close({name: fast[name] for name in slow}, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))
    assert all(p.grad is None for p in both[0].parameters())


@pytest.mark.parametrize("future_len", [0, 3])
@pytest.mark.parametrize("kind", ["state", "register", "window"])
def test_decoding_own_memories_equals_the_detached_loop(kind, future_len):
    objective = DMT(*(both := models(kind, cell="transformer")), config(lambda_dec=0.5), future_len=future_len)
    fast, slow = objective(batch()), naive.dmt(*both, objective.config, batch(), future_len=future_len)
    assert_close({name: fast[name] for name in slow}, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))
    assert all(p.grad is None for p in both[0].parameters())


def test_some_of_many_own_memories_are_decoded(monkeypatch):
    teacher, rnn = models()
    objective = DMT(teacher, rnn, config(lambda_dec=1.0), future_len=2)
    read = []
    teacher.decoder.register_forward_pre_hook(lambda module, args: read.append(args[0].shape))
    monkeypatch.setattr("retain.objectives.dmt.DECODES", 4)
    loss = objective(batch(length=6))["loss_dec"]
    assert [shape[1] for shape in read] == [4] and loss > 0


@pytest.mark.parametrize("predictive", [True, False])
def test_no_gradient_flows_through_time(predictive):
    teacher, rnn = models()
    objective = DMT(teacher, rnn, config(lambda_dyn=0.0, lambda_readout=1.0, predictive=predictive))
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])
    targets = torch.full((1, 7), IGNORE)
    targets[0, 5] = 3  # the one loss there is looks at m_5, which f made from x_4
    objective({"tokens": tokens, "targets": targets})["loss"].backward()
    reached = (rnn.embed.weight.grad != 0).any(1).tolist()
    assert reached == [False] * 4 + [predictive] + [False] * 2
    assert (rnn.readout.head.weight.grad != 0).any()


def test_dynamics_have_no_gradient_through_time():
    teacher, rnn = models()
    objective = DMT(teacher, rnn, config(lambda_dyn=1.0, lambda_readout=0.0))
    inputs = []
    rnn.cell.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    loss = objective(batch())["loss"]
    assert loss.requires_grad and len(inputs) > 0
    assert not any(x.requires_grad for x in inputs), "f must never be trained through the memory it reads"


def test_teacher_is_frozen():
    teacher, rnn = models()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    objective = DMT(teacher, rnn, config())
    objective(batch())["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert_close(dict(teacher.state_dict()), before)
    assert not set(map(id, teacher.parameters())) & set(map(id, objective.parameters()))


@pytest.mark.parametrize("kind", ["state", "register", "window"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "changes", [{}, {"horizon": 2}, {"bptt_window": 3}, {"lambda_readout": 0.0}, {"predictive": False}], ids=str
)
def test_every_trainable_parameter_has_a_gradient(kind, cell, changes):
    objective = DMT(*models(kind, cell), config(**changes))
    objective(batch())["loss"].backward()
    for name, p in objective.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    frozen = {name for name, p in objective.named_parameters() if not p.requires_grad}
    assert "rnn.m_0" in frozen
    assert any("readout" in name for name in frozen) == (changes.get("lambda_readout") == 0)


def test_a_stretch_of_the_whole_sequence_has_no_use_for_a_horizon(monkeypatch):
    """It starts from m_0 whatever the horizon, so that nothing is rolled out beside it."""
    monkeypatch.setattr("retain.objectives.dmt.rollout_from_teacher", lambda *a: pytest.fail("thrown away"))
    found = []
    for progress in (0.0, 1.0):
        objective = DMT(*models(), config(bptt_window=None, horizon_growth=0.5))
        losses = objective(batch() | {"progress": progress})
        found.append(losses | gradients(losses["loss"], objective))
        assert losses["horizon"] == 6
    assert_close(*found)


def test_rnn_starts_from_the_teachers_m_0():
    teacher, rnn = models()
    objective = DMT(teacher, rnn, config())
    assert torch.equal(rnn.m_0, teacher.empty_memory())
    own = rollout_from_teacher(rnn, teacher.eval().encode(batch()["tokens"]), batch()["tokens"], 6)
    alone = rnn.rollout(batch()["tokens"], rnn.init_memory(2))
    assert_close(own[:, 1:], alone[:, :-1])
    objective.finish()
    assert torch.equal(rnn.m_0, teacher.empty_memory())


@pytest.mark.parametrize("norm", ["rms", "batch"])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_rollout_equals_naive(norm, length):
    teacher, rnn = models(norm=norm)
    tokens = torch.randint(VOCAB, (2, length), generator=torch.Generator().manual_seed(0))
    memory = teacher.eval().encode(tokens).detach()
    untouched = memory.clone()
    for horizon in range(1, length + 3):
        offsets = set()
        for seed in range(12):
            torch.manual_seed(seed)
            offset = int(torch.randint(horizon, ()))
            offsets.add(offset)
            torch.manual_seed(seed)
            own = rollout_from_teacher(rnn, memory, tokens, horizon)
            assert own.shape == (2, length, 2, 4) and not own.requires_grad
            assert_close(own, naive.rollout_from_teacher(rnn, memory, tokens, horizon, offset).detach())
        assert len(offsets) > 1 or horizon == 1
    assert torch.equal(memory, untouched), "the teacher's memories are the labels: they must not be written to"


def test_rollout_is_as_deep_as_its_horizon_and_hardly_wider_than_the_sequence(monkeypatch):
    teacher, rnn = models()
    tokens = batch(length=16)["tokens"]
    memory = teacher.eval().encode(tokens)
    shapes, rollout = [], rnn.rollout
    monkeypatch.setattr(rnn, "rollout", lambda tokens, memory: shapes.append(tokens.shape) or rollout(tokens, memory))
    for horizon in (2, 5, 12, 16, 40):
        for _ in range(5):
            shapes.clear()
            rollout_from_teacher(rnn, memory, tokens, horizon)
            (segments,) = {rows for rows, _ in shapes}
            steps = sum(columns for _, columns in shapes)
            assert steps == min(horizon, 16) and len(shapes) <= 2
            assert segments == 2 * -(-16 // steps)


@pytest.mark.parametrize(
    "horizon, length, values",
    [
        (None, 64, [1, 2, 4, 8, 16, 32, 64]),
        (8, 64, [1, 2, 4, 8]),
        (None, 20, [1, 2, 4, 8, 16, 20]),
        (1, 64, [1]),
        (100, 10, [1, 2, 4, 8, 10]),
    ],
)
def test_horizon_doubles_to_its_full_length(horizon, length, values):
    objective = DMT(*models(), config(horizon=horizon))
    grid = [objective.horizon(i / 1000, length) for i in range(1001)]
    assert sorted(set(grid)) == values
    assert grid == sorted(grid)
    assert grid[0] == values[0] and set(grid[700:]) == {values[-1]}
    # Every horizon but the last has the same share of the growth.
    shares = [grid.count(value) for value in values[:-1]]
    assert not shares or max(shares) - min(shares) <= 2


def test_horizon_growth_at_its_ends():
    at_once = DMT(*models(), config(horizon_growth=0.0))
    assert [at_once.horizon(p, 32) for p in (0, 0.5, 1)] == [32, 32, 32]
    to_the_end = DMT(*models(), config(horizon_growth=1.0))
    assert to_the_end.horizon(0.99, 32) < 32 == to_the_end.horizon(1.0, 32)


def test_progress_sets_the_horizon():
    objective = DMT(*models(), config())
    seen = [float(objective(batch() | {"progress": p})["horizon"]) for p in (0.0, 0.3, 1.0)]
    assert seen == [1, 2, 6] and float(objective(batch())["horizon"]) == 6, "without it, the longest"


def test_relative_drift_is_over_the_variance_across_sequences():
    teacher, rnn = models()
    losses = DMT(teacher, rnn, config())(batch())
    memory = teacher.eval().encode(batch()["tokens"])
    variance = sum(memory[:, t].var(0, correction=0).mean() for t in range(1, 7)) / 6
    assert_close(losses["relative_drift"], losses["loss_dyn"].detach() / variance)
    assert not losses["relative_drift"].requires_grad


def test_batch_without_a_target_trains_memory_alone():
    data = batch()
    data["targets"][:] = IGNORE
    objective = DMT(*models(), config())
    losses = objective(data)
    assert losses["loss_readout"] == 0
    losses["loss"].backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)


def test_ignored_targets_never_matter():
    data, (teacher, rnn) = batch(), models()
    objective = DMT(teacher, rnn, config())
    with_all = objective(data)
    one = data["targets"].flatten().tolist().index(next(y for y in data["targets"].flatten().tolist() if y != IGNORE))
    fewer = data | {"targets": data["targets"].clone()}
    fewer["targets"].view(-1)[one] = IGNORE
    assert_close(objective(fewer)["loss_dyn"], with_all["loss_dyn"])
    assert_close(objective(fewer)["loss_readout"], naive.dmt(teacher, rnn, objective.config, fewer)["loss_readout"])
    assert not torch.allclose(objective(fewer)["loss_readout"], with_all["loss_readout"])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "changes", [{"horizon": 2, "horizon_growth": 0.0}, {"horizon_growth": 0.0, "bptt_window": 3}], ids=str
)
def test_every_parameter_learns_under_autocast_too(cell, changes):
    """Casts of weights that a rollout without a graph has made must not be taken for those that are trained."""
    objective = DMT(*(m.float() for m in models(cell=cell)), config(**changes))
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch())["loss"]
    loss.backward()
    for name, p in objective.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_casts_of_weights_do_not_outlive_a_rollout_without_a_graph(monkeypatch):
    cleared = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: cleared.append(torch.is_grad_enabled()))
    teacher, rnn = models()
    DMT(teacher, rnn, config(horizon=2, horizon_growth=0.0))(batch())
    assert len(cleared) >= 2  # after the labels, and after the rollout
    cleared.clear()
    memory = torch.zeros(2, 7, 2, 4, dtype=torch.float64)
    own_memories(rnn, memory, batch()["tokens"], torch.tensor([2, 4]), 2)
    assert len(cleared) == 1


def test_the_teacher_stays_in_the_mode_that_it_was_in():
    teacher, rnn = models()
    teacher.train()
    mean = teacher.norm.mean.clone()
    DMT(teacher, rnn, config())(batch())["loss"].backward()
    assert teacher.training and all(part.training for part in teacher.modules())
    assert torch.equal(teacher.norm.mean, mean), "its labels are those of evaluation all the same"


def test_the_teacher_goes_where_the_objective_goes():
    teacher, rnn = models()
    objective = DMT(teacher, rnn, config()).float()
    assert teacher.decoder.head.weight.dtype == torch.float32
    assert objective(batch())["loss"].dtype == torch.float32


@pytest.mark.parametrize("make", [lambda t, r: DMT(t, r, config()), lambda t, r: SMT(t, r, smt_config(), 3)])
@pytest.mark.parametrize(
    "other, words", [({"norm": "rms"}, "memory.norm: the teacher has batch, the RNN rms"), ({"tokens": 3}, "memory: ")]
)
def test_teacher_and_rnn_have_one_memory(make, other, words):
    with pytest.raises(ValueError, match=words):
        make(models()[0], models(**other)[1])


@pytest.mark.parametrize("objective", [lambda t, r: DMT(t, r, config()), lambda t, r: BPTT(r)])
def test_a_target_for_each_token_alone_is_refused(objective):
    data = batch()
    with pytest.raises(ValueError, match=r"targets: \(2, 6\) for \(2, 7\) memories; give \(B, T \+ 1\)"):
        objective(*models())(data | {"targets": data["targets"][:, 1:]})


@pytest.mark.parametrize("predictive", [True, False])
@pytest.mark.parametrize("every, horizon, start", [(2, 6, 0), (2, 3, 3), (3, 4, 1), (9, 4, 2)])
def test_few_labels_equal_the_loop(every, horizon, start, predictive, monkeypatch):
    """Labels and answers are those of the labelled steps, wherever the rollout begins."""
    teacher, rnn = models()
    few = config(label_every=every, horizon=horizon, horizon_growth=0.0, predictive=predictive, lambda_distill=0.4)
    objective, data = DMT(teacher, rnn, few, trunk_trained=True), batch()
    tokens, targets = data["tokens"], data["targets"]
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.full(size, start))
    fast = objective(data)
    with torch.no_grad():
        labels, trunk = teacher.eval().encode_with_trunk(tokens)
    memory, squared, read, steps = labels[:, start], [], [labels[:, start]], [start]
    for t in range(start, start + horizon):
        new = rnn.update(memory.detach(), tokens[:, t])
        if (t + 1 - start) % min(every, horizon) == 0:
            squared.append((new - labels[:, t + 1]).square().mean())
            read.append(new if predictive else new.detach())
            steps.append(t + 1)
        memory = new
    logits, answers = rnn.readout(torch.stack(read, 1)).flatten(0, 1), targets[:, steps].flatten()
    slow = {"loss_dyn": torch.stack(squared).mean(), "loss_readout": naive.predictive_loss(logits, answers)}
    slow["loss_distill"] = naive.distillation_loss(logits, trunk[:, steps].flatten(0, 1), answers)
    slow["loss"] = 0.8 * slow["loss_dyn"] + 0.6 * slow["loss_readout"] + 0.4 * slow["loss_distill"]
    assert_close({name: fast[name] for name in slow}, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))


def test_of_one_sequence_there_is_no_relative_drift():
    """There is nothing that its memory could be told apart from."""
    for size in (1, 2):
        assert ("relative_drift" in DMT(*models(), config())(batch(size))) == (size > 1)
