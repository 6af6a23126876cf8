"""SMT in one parallel pass equals SMT label by label, future by future, step by step."""

import itertools

import pytest
import torch
from torch import nn

import naive
from naive import VOCAB, assert_close, batch, gradients, models, most_held, padded, smt_config
from retain.config import CELLS, IGNORE
from retain.objectives import SMT, unroll
from retain.objectives.smt import futures, spread

ENCODERS = ("state", "register", "window")


def both(objective, kind, data, **cut):
    """Losses of the objective and of its naive twin."""
    slow = naive.smt(objective.teacher, objective.rnn, kind, objective.config, data, objective.future_len, **cut)
    return objective(data), slow


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("norm", ["rms", "batch", "fsq"])
@pytest.mark.parametrize("cell, future_len", [("mlp", 3), ("transformer", 0), ("gru", 8)])
def test_smt_equals_naive(kind, norm, cell, future_len):
    objective = SMT(*models(kind, cell, norm, future_len=future_len), smt_config(), future_len)
    fast, slow = both(objective, kind, batch())
    assert_close(fast, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))


@pytest.mark.parametrize("kind", ENCODERS)
def test_distillation_equals_naive(kind):
    objective = SMT(*models(kind), smt_config(lambda_distill=0.4), 3)
    fast, slow = both(objective, kind, batch())
    assert_close(fast, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))


@pytest.mark.parametrize("padding", [False, True])
def test_dynamics_relative_to_the_variance_across_sequences(padding):
    objective = SMT(*models(), smt_config(relative_dyn=True), 3)
    fast, slow = both(objective, "state", padded() if padding else batch(size=3))
    assert_close(fast, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))


def seeded(*args):
    torch.manual_seed(5)
    return unroll(*args)


@pytest.mark.parametrize("on_policy, horizon", [(0.5, 4), (1.0, 1), (1.0, 4), (1.0, 6)])
def test_on_policy_equals_naive(on_policy, horizon, monkeypatch):
    monkeypatch.setattr("retain.objectives.smt.ON_POLICY_STEPS", horizon)
    objective = SMT(*models(), smt_config(on_policy=on_policy), 3)
    torch.manual_seed(5)
    offset = int(torch.randint(horizon, ()))
    monkeypatch.setattr("retain.objectives.smt.unroll", seeded)
    fast, slow = both(objective, "state", batch(), offset=offset)
    assert_close(fast, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))


@pytest.mark.parametrize("on_policy, horizon", [(0.0, 1), (0.5, 4), (1.0, 1), (1.0, 4), (1.0, 9)])
@pytest.mark.parametrize("steps", [2, 3, 5, 6, 9])
def test_unroll_equals_naive(steps, on_policy, horizon, monkeypatch):
    monkeypatch.setattr("retain.objectives.smt.ON_POLICY_STEPS", horizon)
    objective = SMT(*models(), smt_config(bptt_window=steps, on_policy=on_policy), 3)
    torch.manual_seed(5)
    offset = int(torch.randint(steps, ())) if steps < 6 else 0
    distance = int(torch.randint(1, min(horizon, 6) + 1, ()))
    monkeypatch.setattr("retain.objectives.smt.unroll", seeded)
    fast, slow = both(objective, "state", batch(), offset=offset, distance=distance)
    assert_close(fast, slow)
    assert_close(gradients(fast["loss"], objective), gradients(slow["loss"], objective))


@pytest.mark.parametrize("steps", [1, 4])
def test_on_policy_of_no_sequence_at_all(steps):
    data, found = batch(size=1), []  # a half of it is none
    for fraction in (0.5, 0.0):
        torch.manual_seed(0)
        found.append(SMT(*models(), smt_config(on_policy=fraction, bptt_window=steps), 3)(data))
    assert_close(*found)


def test_on_policy_is_of_that_fraction_of_sequences():
    data = batch(size=4)
    losses = {}
    for fraction in (0.0, 0.5, 1.0):
        objective = SMT(*models(), smt_config(on_policy=fraction), 3)
        memory = objective.teacher.encode(data["tokens"]).detach()
        starts = []
        objective.rnn.cell.register_forward_pre_hook(lambda module, args, starts=starts: starts.append(args[0]))
        losses[fraction] = objective(data)["loss_dyn"].item()
        start = starts[-1].view(4, 6, 2, 4)  # what the trained step begins from
        from_teacher = [bool(torch.allclose(start[b], memory[b, :-1])) for b in range(4)]
        own = {0.0: [], 0.5: [1, 3], 1.0: [0, 1, 2, 3]}[fraction]
        assert from_teacher == [b not in own for b in range(4)]
    assert len(set(losses.values())) == 3


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"on_policy": 1.0, "steps_per_sequence": 4, "decodes_per_sequence": 2},
        {"lambda_readout": 0.0, "lambda_trunk": 0.0},
        {"lambda_distill": 1.0, "steps_per_sequence": 4},
        {"bptt_window": 3, "on_policy": 0.5},
        {"lambda_dec": 0.0, "lambda_unif": 0.0},
        {"future_len": 0},
    ],
    ids=str,
)
def test_every_trainable_parameter_has_a_gradient(kind, cell, changes):
    # DDP refuses a model of which a trainable parameter takes no part in the loss.
    changes = dict(changes)
    future_len = changes.pop("future_len", 3)
    objective = SMT(*models(kind, cell, future_len=future_len), smt_config(**changes), future_len)
    objective(batch())["loss"].backward()
    for name, p in objective.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    frozen = {name for name, p in objective.named_parameters() if not p.requires_grad}
    assert "rnn.m_0" in frozen
    assert any("readout" in name for name in frozen) == (changes.get("lambda_readout") == 0)
    assert ("teacher.decoder.head.weight" in frozen) == (changes.get("lambda_dec") == 0)
    assert ("teacher.decoder.embed.weight" in frozen) == (future_len == 0 or changes.get("lambda_dec") == 0)
    assert ("teacher.encoder.trunk.head.weight" in frozen) == (changes.get("lambda_trunk") == 0 and kind != "window")


def test_loss_is_the_weighted_sum():
    config = smt_config(lambda_dyn=0.01, lambda_dyn_end=1.0)
    objective = SMT(*models(), config, 3)
    for progress, dyn in ((0.0, 0.01), (0.5, 0.1), (1.0, 1.0)):
        losses = objective(batch() | {"progress": progress})
        assert_close(objective.lambda_dyn(progress), dyn)
        total = losses["loss_dec"] + 0.2 * losses["loss_unif"] + 0.7 * losses["loss_trunk"]
        assert_close(losses["loss"], total + 0.9 * losses["loss_readout"] + dyn * losses["loss_dyn"])
    constant = SMT(*models(), smt_config(lambda_dyn=0.3), 3)
    assert {constant.lambda_dyn(p) for p in (0, 0.5, 1)} == {0.3}


def test_losses_without_weight_are_left_out():
    losses = SMT(*models(), smt_config(lambda_dec=0, lambda_trunk=0, lambda_readout=0), 3)(batch())
    assert losses.keys() == {"loss", "loss_dyn", "loss_unif"}
    assert "loss_trunk" not in SMT(*models("window"), smt_config(), 3)(batch())


def test_batch_without_a_target_trains_memory_alone():
    data = batch()
    data["targets"][:] = IGNORE
    objective = SMT(*models(), smt_config(), 3)
    losses = objective(data)
    assert losses["loss_dec"] == losses["loss_trunk"] == losses["loss_readout"] == 0
    losses["loss"].backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)


def test_run_of_steps_is_consecutive_and_reaches_every_step():
    objective = SMT(*models(), smt_config(steps_per_sequence=2), 3)
    seen = set()
    encode = objective.teacher.encode_with_trunk

    def spy(tokens, steps, *settings, **more):
        seen.add(tuple(steps.tolist()))
        return encode(tokens, steps, *settings, **more)

    objective.teacher.encode_with_trunk = spy
    for _ in range(60):
        objective(batch())
    assert seen == {(t, t + 1, t + 2) for t in range(5)}


@pytest.mark.parametrize("lambda_readout", [0.0, 1.0])
def test_finish_lets_the_rnn_stand_alone(lambda_readout):
    teacher, rnn = models()
    objective = SMT(teacher, rnn, smt_config(lambda_readout=lambda_readout), 3)
    decoder = {k: v for k, v in teacher.decoder.state_dict().items() if not k.startswith("embed")}
    assert_close(dict(rnn.readout.state_dict()), decoder)  # it starts as a copy
    naive.randomise(teacher, 2)
    naive.randomise(rnn.readout, 3)
    before = {k: v.clone() for k, v in rnn.readout.state_dict().items()}
    objective.finish()
    assert torch.equal(rnn.m_0, teacher.empty_memory())
    assert_close(rnn.m_0, teacher.eval().encode(torch.zeros(1, 5, dtype=torch.long))[0, 0])
    decoder = {k: v for k, v in teacher.decoder.state_dict().items() if not k.startswith("embed")}
    assert_close(dict(rnn.readout.state_dict()), before if lambda_readout else decoder)
    naive.randomise(teacher, 4)
    assert not torch.allclose(rnn.readout.head.weight, teacher.decoder.head.weight), "a copy shares no storage"


@pytest.mark.parametrize("future_len", [0, 1, 3, 20])
def test_futures(future_len):
    tokens = torch.arange(1, 7)[None] + 10 * torch.arange(2)[:, None]  # x_t = 1 + t, plus 10 in the second row
    targets = 100 + torch.arange(7)[None].expand(2, -1)
    steps = torch.tensor([0, 4, 6])
    shown, asked = futures(tokens, targets, steps, future_len)
    assert shown.shape == (2, 3, future_len) and asked.shape == (2, 3, future_len + 1)
    for row, (s, t) in enumerate((s, int(t)) for s, t in enumerate(steps)):
        for b in range(2):
            for i in range(future_len + 1):
                assert asked[b, row, i] == (100 + t + i if t + i <= 6 else IGNORE)
            for i in range(future_len):
                assert shown[b, s, i] == (1 + t + i + 10 * b if t + i < 6 else 0)


@pytest.mark.parametrize("count, wanted", [(7, 1), (7, 3), (7, 6), (64, 4)])
def test_spread_is_even_and_reaches_every_step(count, wanted):
    seen = set()
    for _ in range(60 * count):
        chosen = spread(count, wanted, torch.device("cpu")).tolist()
        assert len(set(chosen)) == wanted and chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < count
        gaps = {b - a for a, b in itertools.pairwise(chosen)}
        assert gaps <= {count // wanted, -(-count // wanted)}
        seen |= set(chosen)
    assert seen == set(range(count))


@pytest.mark.parametrize("wanted", [None, 7, 8])
def test_spread_of_all_is_all(wanted):
    assert spread(7, wanted, torch.device("cpu")).tolist() == list(range(7))


@pytest.mark.parametrize("pieces", [2, 3, 6, 50])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lambda_distill": 0.4},
        {"lambda_distill": 0.4, "lambda_trunk": 0.0},
        {"lambda_readout": 0.0},
        {"steps_per_sequence": 4},
    ],
    ids=str,
)
def test_in_chunks_equals_at_once(pieces, changes):
    data, found = batch(), []
    for count in (1, pieces):
        objective = SMT(*models(), smt_config(**changes, num_chunks=count), 3)
        torch.manual_seed(0)
        losses = objective(data)
        found.append((losses, gradients(losses["loss"] * 2, objective)))
    for whole, in_chunks in zip(*found, strict=True):
        assert_close(in_chunks, whole)
    if not changes:
        slow = naive.smt(objective.teacher, objective.rnn, "state", objective.config, data, 3)
        assert_close(losses, slow)
        assert_close(gradients(losses["loss"] * 2, objective), gradients(slow["loss"] * 2, objective))


def test_in_chunks_stretches_end_where_a_chunk_does(monkeypatch):
    seen = []

    def watched(rnn, memory, tokens, *settings):
        seen.append((memory.shape[1], tokens.shape[1], settings[0], settings[1].tolist(), settings[2]))
        return unroll(rnn, memory, tokens, *settings)

    monkeypatch.setattr("retain.objectives.smt.unroll", watched)
    objective = SMT(*models(), smt_config(bptt_window=2, on_policy=0.5, num_chunks=3), 3)
    assert objective(batch(length=8))["loss"].isfinite()
    assert seen == [(3, 3, 2, [1], 8), (2, 2, 2, [1], 8), (3, 3, 2, [1], 8)]


@pytest.mark.parametrize("cell", ["gated", "delta", "transformer"])
def test_in_chunks_equals_at_once_under_autocast(cell):
    data, found = batch(4, 32), []
    for count in (1, 4):
        objective = SMT(*(m.float() for m in models(cell=cell, layers=1)), smt_config(num_chunks=count), 3)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(data)["loss"]
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.requires_grad]))
    assert (found[1] - found[0]).norm() < 0.01 * found[0].norm()


def test_in_chunks_holds_the_activations_of_one():
    most = []
    for count in (1, 8):
        objective = SMT(*models(cell="transformer", layers=6), smt_config(decodes_per_sequence=1, num_chunks=count), 3)
        most.append(most_held(lambda objective=objective: objective(batch(4, 64))["loss"]))
    assert most[1] < 0.5 * most[0]


def saved_bytes(objective, length):
    """Bytes that autograd keeps for the backward pass of one step, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    data = {"tokens": torch.randint(VOCAB, (8, length)), "targets": torch.randint(VOCAB, (8, length + 1))}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = objective(data)["loss"]
    del loss
    return sum(kept.values())


def test_memory_of_a_step_grows_linearly_with_length(monkeypatch):
    # Its sample is of constant size, and would hide the rest at this scale.
    monkeypatch.setattr("retain.objectives.smt.uniformity_loss", lambda memory, which: memory.sum())
    config = smt_config(decodes_per_sequence=4, on_policy=0.5)
    kept = {}
    for kind in ("state", "window"):
        objective = SMT(*(m.float() for m in models(kind)), config, 3)
        kept[kind] = [saved_bytes(objective, length) for length in (32, 64, 128)]
    ratios = [b / a for a, b in zip(kept["state"], kept["state"][1:], strict=False)]
    assert min(ratios) > 1.7 and max(ratios) < 2.6
    # The measure tells: one pass per step grows as the square.
    assert kept["window"][2] / kept["window"][1] > 3


def test_objective_is_one_module_with_named_scalars():
    objective = SMT(*models(), smt_config(), 3)
    assert isinstance(objective, nn.Module)
    for name, value in objective(batch()).items():
        assert value.shape == () and value.isfinite() and name.startswith("loss")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("unroll", [1, 3])
def test_every_parameter_learns_under_autocast_too(cell, unroll):
    teacher, rnn = (m.float() for m in models(cell=cell))
    objective = SMT(teacher, rnn, smt_config(on_policy=1.0, bptt_window=unroll), 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch())["loss"]
    loss.backward()
    for name, p in objective.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_a_new_delta_cell_writes_to_its_stores_as_the_store_encoder_does():
    teacher, rnn = models("store")
    tokens = batch(3, 9)["tokens"]
    before = rnn.rollout(tokens, teacher.encode(tokens)[:, 0])
    objective = SMT(teacher, rnn, smt_config(), 0)
    labels = teacher.encode(tokens)
    after = rnn.rollout(tokens, labels[:, 0])
    assert_close(after[:, :, 1:], labels[:, 1:, 1:])
    assert (before - labels[:, 1:])[:, :, 1:].square().mean() > 0.1
    fast, slow = both(objective, "store", batch())
    for name in fast.keys() - {"loss", "loss_unif"}:  # uniformity is of directions, and an empty store has none
        assert_close(fast[name], slow[name])
