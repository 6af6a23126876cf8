"""Streams of numbers: what a model reads of them, what it predicts, and its running level and scale."""

import math

import pytest
import torch
from torch import distributions as D

from retain.config import HEADS, CellConfig, Channels, DMTLoss, MemoryConfig, SMTLoss, TeacherConfig
from retain.errors import UserError
from retain.model.cells import CELLS
from retain.model.likelihood import LIKELIHOODS, RANK, TAUS, likelihood_of
from retain.model.rnn import RNN
from retain.model.series_rnn import SeriesRNN
from retain.model.teacher import Teacher
from retain.objectives import BPTT, DMT, SMT
from retain.ops import scale

ENCODERS = ("state", "register", "window")
CONTINUOUS = ("student", "gaussian", "logistics", "quantiles", "lowrank")


def channels_of(head="student", count=2, **changes):
    by = {"bernoulli": "fixed", "categorical": "fixed", "negative_binomial": "mean"}.get(head, "level")
    ones = (1.0,) * count
    fields = {"names": tuple("abcdef"[:count]), "head": head, "scale": by, "steps": 8, "spread": ones}
    fields |= {"level": (0.0,) * count, "least": (0.5,) * count, "ratio": (0.1,) * count}
    fields |= {"covariates": ("k",), "shift": (1.0,), "stretch": (2.0,)}
    fields |= {"categories": ("kind",), "kinds": (("u", "v"),), "classes": 4 if head == "categorical" else 0}
    return Channels(**fields | changes)


def rows_of(channels, batch=3, length=12, seed=0):
    """Rows (B, T, C + Q), with some values missing."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, channels.row, generator=drawn, dtype=torch.float64)
    values = x[..., : channels.values]
    if channels.head == "bernoulli":
        values.copy_((values > 0).double())
    elif channels.head in ("categorical", "negative_binomial"):
        values.copy_((2 * values).abs().round().clamp(0, 3))
    else:
        values.mul_(3).add_(20)
    x[..., -1] = torch.randint(0, 3, (batch, length), generator=drawn).double()
    x[:, 0, : channels.values] = torch.nan  # a stream begins with none
    x[0, 4, : channels.values] = torch.nan
    x[1, 6, 0] = torch.nan
    x[1, 7, channels.values] = torch.nan
    return x


def batch_of(channels, rows):
    tokens, levels, scales, _ = scale.read_rows(channels, rows, scale.begin(channels, len(rows)))
    values = torch.cat([rows[:, 1:, : channels.values], rows[:, -1:, : channels.values]], 1)
    targets = scale.target(values, levels, scales)
    return {"tokens": tokens, "targets": torch.cat([torch.full_like(targets[:, :1], torch.nan), targets], 1)}


def models(channels, encoder="state", kind="gated", norm="batch"):
    torch.manual_seed(0)
    memory = MemoryConfig(tokens=4, width=16, norm=norm)
    config = TeacherConfig(encoder=encoder, width=16, heads=2, layers=1, decoder_layers=1, future_len=4)
    cell = CellConfig(kind=kind, width=16, heads=2)
    rnn, teacher = RNN(channels, memory, config, cell), Teacher(channels, memory, config)
    with torch.no_grad():
        for p in (*rnn.parameters(), *teacher.parameters()):  # some begin as zero, and hide what stands before them
            p.add_(0.1 * torch.randn_like(p))
    return rnn, teacher


def objectives(rnn, teacher):
    yield SMT(teacher, rnn, SMTLoss(bptt_window=4, on_policy=0.5), 4)
    yield DMT(teacher, rnn, DMTLoss(bptt_window=4, horizon_growth=0.0))
    yield BPTT(rnn, 4)


@pytest.mark.parametrize("head", HEADS)
def test_every_objective_trains_every_head(head):
    channels = channels_of(head)
    rnn, teacher = models(channels)
    for objective in objectives(rnn, teacher):
        losses = objective(batch_of(channels, rows_of(channels)))
        losses["loss"].backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in rnn.embed.parameters())
        objective.zero_grad()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", CELLS)
def test_every_encoder_and_cell_reads_numbers(encoder, kind):
    channels = channels_of()
    rnn, teacher = models(channels, encoder, kind)
    for objective in objectives(rnn, teacher):
        objective(batch_of(channels, rows_of(channels)))["loss"].backward()
        assert all(p.grad.isfinite().all() for p in rnn.parameters() if p.grad is not None)
        objective.zero_grad()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_memory_is_blind_to_the_future(encoder):
    channels = channels_of()
    rnn, teacher = models(channels, encoder)
    rnn.eval(), teacher.eval()
    rows = rows_of(channels)
    changed = rows.clone()
    changed[:, 7:, : channels.values] *= 50
    changed[:, 7:, channels.values] += 1
    for read in (lambda b: teacher.encode(b["tokens"]), lambda b: rnn.rollout(b["tokens"], rnn.init_memory(3))):
        before, after = (read(batch_of(channels, x)) for x in (rows, changed))
        end = 8 if read(batch_of(channels, rows)).shape[1] == 13 else 7
        torch.testing.assert_close(before[:, :end], after[:, :end], rtol=1e-5, atol=1e-5)
        assert (before[:, end:] - after[:, end:]).abs().max() > 1e-3


@pytest.mark.parametrize("by", ["level", "mean", "fixed"])
def test_tokens_and_measures_follow_from_the_past(by):
    channels = channels_of(scale=by)
    rows = rows_of(channels)
    changed = rows.clone()
    changed[:, 5:] = 1e6
    before, after = (scale.read_rows(channels, x, scale.begin(channels, 3)) for x in (rows, changed))
    for one, other in zip(before[:3], after[:3], strict=True):
        assert torch.equal(one[:, :5], other[:, :5])
    assert not torch.equal(before[0][:, 5:], after[0][:, 5:])
    assert by == "fixed" or not torch.equal(before[2][:, 5:], after[2][:, 5:])


@pytest.mark.parametrize("by", ["level", "mean", "fixed"])
def test_rows_are_read_as_one_by_one(by):
    channels = channels_of(scale=by)
    rows = rows_of(channels)
    tokens, levels, scales, last = scale.read_rows(channels, rows, scale.begin(channels, 3))
    state = scale.begin(channels, 3)
    for t, row in enumerate(rows.unbind(1)):
        state = scale.update(channels, state, row[:, : channels.values])
        assert torch.equal(tokens[:, t], scale.read(channels, state, row))
        for one, other in zip((levels, scales), scale.measures(channels, state), strict=True):
            assert torch.equal(one[:, t], other)
    assert torch.equal(last, state)


@pytest.mark.parametrize("by", ["level", "mean"])
def test_a_stream_keeps_the_running_mean_and_deviation(by):
    """The slow twin: plain averages of the values so far, while there are fewer than `steps`."""
    channels = channels_of(count=1, scale=by, steps=100, covariates=(), shift=(), stretch=(), categories=(), kinds=())
    values = torch.randn(1, 6, 1, dtype=torch.float64) + 20
    _, levels, scales, _ = scale.read_rows(channels, values, scale.begin(channels, 1))
    seen, level, apart = [], 0.0, []
    for step, value in enumerate(values.flatten().tolist()):
        first = max(abs(value) * 0.1, 0.5)  # ratio, least
        apart.append(first if not seen else abs(value - (level if by == "level" else 0.0)))
        seen.append(value)
        level = sum(seen) / len(seen)
        assert math.isclose(float(levels[0, step, 0]), level if by == "level" else 0.0)
        assert math.isclose(float(scales[0, step, 0]), sum(apart) / len(apart))


def test_a_level_and_scale_follow_the_unit_of_the_values():
    channels = channels_of(count=1, covariates=(), shift=(), stretch=(), categories=(), kinds=(), least=(1e-9,))
    values = torch.randn(2, 30, 1, dtype=torch.float64)
    for factor in (1e-3, 1e9):
        found = []
        for x in (values, values * factor):
            _, levels, scales, _ = scale.read_rows(channels, x, scale.begin(channels, 2))
            found.append(scale.target(x, levels, scales)[..., 0])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_an_outlier_moves_the_scale_a_little_and_infinity_counts_as_missing():
    channels = channels_of(count=1, covariates=(), shift=(), stretch=(), categories=(), kinds=())
    values = torch.randn(1, 20, 1, dtype=torch.float64)
    spoilt = values.clone()
    spoilt[0, 15], spoilt[0, 16] = 1e30, math.inf
    _, _, before, _ = scale.read_rows(channels, values, scale.begin(channels, 1))
    tokens, _, after, _ = scale.read_rows(channels, spoilt, scale.begin(channels, 1))
    assert after[0, 17] < 4 * before[0, 17]
    assert tokens.isfinite().all() and tokens[0, 16, 1] == 1


@pytest.mark.parametrize("head", [h for h in HEADS if h not in ("lowrank", "quantiles")])
def test_nats_are_those_of_the_distribution_one_by_one(head):
    channels = channels_of(head)
    likelihood = likelihood_of(channels)
    logits = torch.randn(4, likelihood.size, dtype=torch.float64)
    values = rows_of(channels, 4)[:, 2, :2]
    values[1, 0] = torch.nan
    level = torch.zeros(4, 2) if head not in CONTINUOUS else torch.full((4, 2), 19.0)
    scales = torch.ones(4, 2) if channels.scale == "fixed" else torch.full((4, 2), 2.0)
    nats = likelihood.nats(logits, scale.target(values, level, scales))
    for b in range(4):
        said = likelihood.distribution(logits[b], level[b], scales[b])
        for c in range(2):
            if values[b, c].isnan():
                assert nats[b, c] == 0
            else:
                filled = values[b].nan_to_num(0.0)
                torch.testing.assert_close(
                    nats[b, c].double(), -said.log_prob(filled)[c].double(), rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize("head", HEADS)
def test_samples_have_the_mean_of_the_distribution(head):
    channels = channels_of(head)
    likelihood = likelihood_of(channels)
    torch.manual_seed(0)
    logits = torch.randn(likelihood.size)
    said = likelihood.distribution(logits, torch.zeros(2), torch.ones(2))
    drawn = said.sample(torch.Size([20_000]))
    assert drawn.shape == (20_000, 2)
    if head == "categorical":  # whose mean is the likeliest
        assert torch.equal(drawn.mode(0).values, said.mean)
    else:
        error = drawn.double().std(0) / 20_000**0.5
        assert ((drawn.double().mean(0) - said.mean).abs() < 6 * error).all()


def test_quantiles_have_a_density_that_goes_with_them():
    likelihood = likelihood_of(channels_of("quantiles", 1))
    said = likelihood.of(torch.randn(1, likelihood.size, dtype=torch.float64), torch.ones(1, 1))
    assert (said.at.diff() > 0).all()
    torch.testing.assert_close(said.icdf(said.taus[:, None, None])[:, 0, 0], said.at[0, 0])
    at = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    density = said.log_prob(at[:, None, None])[:, 0, 0].exp()
    assert abs(float(torch.trapezoid(density, at)) - 1) < 1e-3
    below = float(torch.trapezoid(density[at <= said.at[0, 0, 3]], at[at <= said.at[0, 0, 3]]))
    assert abs(below - TAUS[3]) < 1e-3


def test_pinball_loss_is_least_at_the_quantiles():
    likelihood = likelihood_of(
        channels_of("quantiles", 1, covariates=(), shift=(), stretch=(), categories=(), kinds=())
    )
    torch.manual_seed(0)
    z = torch.randn(4000, 1)
    targets = torch.cat([z, torch.ones_like(z)], 1)
    logits = torch.zeros(1, likelihood.size, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        likelihood.loss(logits.expand(4000, -1), targets).mean().backward()
        optimizer.step()
    said = likelihood.of(logits, torch.ones(1, 1)).at[0, 0]
    torch.testing.assert_close(said, z.flatten().quantile(torch.tensor(TAUS)), atol=0.12, rtol=0)


def test_low_rank_integrates_out_what_is_missing():
    count = 3
    likelihood = likelihood_of(channels_of("lowrank", count))
    assert likelihood.size == count * (2 + min(RANK, count))
    logits = torch.randn(1, likelihood.size, dtype=torch.float64)
    of = likelihood.of(logits, torch.ones(1, count))
    z = torch.tensor([[0.3, math.nan, -1.0]], dtype=torch.float64)
    keep = [0, 2]
    whole = D.MultivariateNormal(of.loc[0, keep], of.covariance_matrix[0][keep][:, keep])
    nats = likelihood.nats(logits, torch.cat([z, torch.ones(1, count)], 1))
    torch.testing.assert_close(nats[0], -whole.log_prob(z[0, keep]))


@pytest.mark.parametrize("head", HEADS)
def test_likelihoods_have_right_gradients(head):
    channels = channels_of(head)
    likelihood = likelihood_of(channels)
    torch.manual_seed(1)
    values = rows_of(channels)[:, 2, :2]
    targets = scale.target(values, values * 0, values * 0 + 1).double()
    targets[0, 0] = torch.nan
    logits = torch.randn(3, likelihood.size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: likelihood.loss(x, targets), logits)


def test_a_class_for_each_head():
    assert tuple(LIKELIHOODS) == HEADS


@pytest.mark.parametrize("head", HEADS)
def test_steps_equal_whole_sequences_in_any_chunks(head):
    channels = channels_of(head)
    rnn = SeriesRNN(models(channels)[0]).eval().requires_grad_(False)
    rows = rows_of(channels)
    whole, end = rnn(rows)
    following = rows.roll(-1, 1)[..., : channels.values]
    score = whole.log_prob(following.nan_to_num(0.0))
    for chunks in ([1] * 12, [5, 7], [3, 3, 6]):
        memory, scores = rnn.init_memory(3), []
        for part, after in zip(rows.split(chunks, 1), following.split(chunks, 1), strict=True):
            said, memory = rnn(part, memory)
            scores.append(said.log_prob(after.nan_to_num(0.0)))
        torch.testing.assert_close(torch.cat(scores, 1), score, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(memory, end, rtol=1e-4, atol=1e-4)
    memory = rnn.init_memory(3)
    for t in range(12):
        said, memory = rnn.step(rows[:, t], memory)
        torch.testing.assert_close(said.log_prob(following[:, t].nan_to_num(0.0)), score[:, t], rtol=1e-4, atol=1e-4)


def test_memory_stays_as_large_and_is_a_tensor_to_keep():
    channels = channels_of()
    rnn = SeriesRNN(models(channels)[0]).eval().requires_grad_(False)
    sizes = set()
    for length in (2, 64, 512):
        memory = rnn.read(
            rows_of(channels, 3, length, 1) if length > 8 else rows_of(channels)[:, :length], rnn.init_memory(3)
        )
        sizes.add((memory.shape, memory.dtype))
    assert sizes == {(torch.Size([3, 4 + rnn.rows, 16]), torch.float32)}
    # One stream of a batch, taken out and put beside another, goes on as it would have.
    one, x = memory[1:2].clone(), rows_of(channels)
    torch.testing.assert_close(rnn.read(x[1:2], one), rnn.read(x, memory)[1:2], rtol=1e-5, atol=1e-5)


def test_a_level_far_from_zero_keeps_its_digits_in_memory():
    channels = channels_of(count=1, covariates=(), shift=(), stretch=(), categories=(), kinds=())
    rnn = SeriesRNN(models(channels)[0]).eval().requires_grad_(False)
    values = 1e9 + torch.arange(40, dtype=torch.float64)[None, :, None] % 2
    memory = rnn.init_memory(1)
    for part in values.split(1, 1):
        memory = rnn.read(part, memory)
    _, levels, scales, _ = scale.read_rows(channels, values, scale.begin(channels, 1))
    _, state = rnn._split(memory)
    level, spread = scale.measures(channels, state)
    torch.testing.assert_close((level - 1e9, spread), (levels[:, -1] - 1e9, scales[:, -1]), rtol=1e-3, atol=1e-3)


def test_what_is_missing_counts_nowhere():
    channels = channels_of()
    rnn, _ = models(channels)
    batch = batch_of(channels, rows_of(channels))
    asked = ~batch["targets"][..., :2].isnan()
    memories = torch.cat([rnn.init_memory(3)[:, None], rnn.rollout(batch["tokens"], rnn.init_memory(3))], 1)
    nats = rnn.readout.likelihood.nats(rnn.readout(memories), batch["targets"])
    loss = BPTT(rnn)(batch)["loss"]
    torch.testing.assert_close(loss, nats[asked].sum() / asked.sum())


@pytest.mark.parametrize("back", [1, 2, 3])
def test_a_trunk_reads_the_newest_tokens_each_by_a_map_of_its_own(back):
    channels = channels_of()
    _, teacher = models(channels)
    trunk = teacher.encoder.trunk
    tokens = batch_of(channels, rows_of(channels))["tokens"]
    whole = trunk.inputs(tokens)[:, 1:]
    alone = sum(trunk.embed(tokens[:, 8 - i], i) for i in range(4))
    torch.testing.assert_close(whole[:, 8], alone)
    without = alone - trunk.embed(tokens[:, 8 - back], back)
    assert (without - alone).abs().max() > 1e-3


def test_wrong_shapes_are_named():
    channels = channels_of()
    rnn = models(channels)[0]
    with pytest.raises(UserError, match=r"tokens: \(2, 3\) is the wrong shape; give \(B, T, "):
        rnn.rollout(torch.zeros(2, 3), rnn.init_memory(2))
    series = SeriesRNN(rnn)
    with pytest.raises(UserError, match=r"x: \(1, 1, 3\) is the wrong shape; give \(B, T, 4\)"):
        series.step(torch.zeros(1, 3), series.init_memory(1))
    for wrong in (torch.zeros(1, 6, 3), torch.zeros(1, 0, 4), torch.zeros(1, 4)):
        with pytest.raises(UserError, match=r"x: .* is the wrong shape; give \(B, T, 4\)"):
            series(wrong)
        with pytest.raises(UserError, match=r"x: .* is the wrong shape; give \(B, T, 4\)"):
            series.surprises(wrong, wrong, series.init_memory(1))
    with pytest.raises(UserError, match=r"memory: .* is the wrong shape; give \(B, 5, 16\)"):
        series.step(torch.zeros(1, 4), rnn.init_memory(1))
    with pytest.raises(UserError, match="reads tokens, not numbers"):
        SeriesRNN(RNN(5, MemoryConfig(tokens=1, width=8), TeacherConfig(width=16, heads=2), CellConfig(width=8)))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_padding_counts_nowhere(which):
    channels = channels_of()
    rnn, teacher = models(channels)
    objective = list(objectives(rnn, teacher))[which]
    batch = batch_of(channels, rows_of(channels))
    real = torch.arange(12) < torch.tensor([12, 7, 9])[:, None]
    batch["targets"][:, 1:] = batch["targets"][:, 1:].masked_fill(~real[..., None], torch.nan)
    found = []
    for filled in (0.0, 9.0):
        tokens = batch["tokens"].masked_fill(~real[..., None], filled)
        torch.manual_seed(5)
        rnn.train(), teacher.train()
        found.append(objective({"tokens": tokens, "targets": batch["targets"], "real": real}))
    for name in ("loss_dec", "loss_trunk", "loss_dyn", "loss_readout", "loss"):
        if name in found[0]:
            torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)
