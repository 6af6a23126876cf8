"""The slow, obvious twins of everything that is fast in the library, and the helpers that compare them."""

from __future__ import annotations

import itertools
import math

import torch

from retain.config import IGNORE, CellConfig, MemoryConfig, SMTConfig, TeacherConfig
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives import smt as objectives_smt

VOCAB = 7


def assert_close(fast, slow, tolerance=None):
    """Equal up to rounding: tensors, numbers, or dicts of them (with the same keys)."""
    if isinstance(fast, dict):
        assert fast.keys() == slow.keys()
        for key in fast:
            assert_close(fast[key], slow[key], tolerance)
        return
    fast, slow = torch.as_tensor(fast), torch.as_tensor(slow)
    if tolerance is None:
        tolerance = 1e-9 if fast.dtype == slow.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance, check_dtype=False)


def gradients(loss, module):
    """Name → gradient of every trainable parameter, zero where the loss does not reach it."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


class Held:
    """A tensor saved for the backward pass, and how many bytes of such there are, and were at most."""

    now = most = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Held.now += tensor.nbytes
        Held.most = max(Held.most, Held.now)

    def __del__(self):
        Held.now -= self.tensor.nbytes


def most_held(loss):
    """The most bytes that are saved at one time for the backward pass of what `loss()` returns."""
    Held.now = Held.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        loss().backward()
    assert Held.now == 0
    return Held.most


def randomise(module, seed=0, std=0.3):
    """Noise on every parameter: at initialisation many are zero and would hide a fault."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=noise) * std)
    return module


def models(
    encoder="state",
    cell="mlp",
    norm="batch",
    *,
    context_len=None,
    future_len=3,
    residual=True,
    tokens=2,
    layers=2,
    recompute=False,
    trunk="attention",
):
    """A small teacher and RNN in float64, far from their initialisation."""
    torch.manual_seed(0)
    if encoder == "store":
        cell, norm = "delta", "none"
    width = 16 if encoder == "store" else 4
    memory = MemoryConfig(tokens=4 if cell == "delta" else tokens, width=width, norm=norm)  # two stores
    teaching = TeacherConfig(
        encoder=encoder,
        trunk=trunk,
        local=2 if trunk == "delta" else 1,
        width=8,
        heads=2,
        layers=2,
        decoder_layers=2,
        future_len=future_len,
        context_len=context_len,
    )
    teacher = randomise(Teacher(VOCAB, memory, teaching, recompute)).double()
    rnn = randomise(
        RNN(VOCAB, memory, teaching, CellConfig(kind=cell, width=8, heads=2, layers=layers, residual=residual)), 1
    ).double()
    if norm == "batch":
        teacher.norm.mean.normal_(std=0.1)
        teacher.norm.variance.uniform_(0.5, 2)
    return teacher, rnn


def batch(size=2, length=6, seed=0):
    """Random tokens and targets, a quarter of the targets IGNORE."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(VOCAB, (size, length + 1), generator=g)
    targets[torch.rand(size, length + 1, generator=g) < 0.25] = IGNORE
    return {"tokens": torch.randint(VOCAB, (size, length), generator=g), "targets": targets}


def padded(length=6, lengths=(6, 3, 1), fill=None):
    """`batch` of sequences that end after so many tokens, and say so; `fill`, or random tokens, stand behind."""
    data = batch(len(lengths), length)
    real = torch.arange(length) < torch.tensor(lengths)[:, None]
    if fill is not None:
        data["tokens"] = data["tokens"].where(real, fill)
    data["targets"][:, 1:][~real] = IGNORE
    return data | {"real": real}


def real_of(batch):
    """Which tokens are no padding (B, T), and which memories count (B, T + 1)."""
    real = batch.get("real", torch.ones_like(batch["tokens"], dtype=torch.bool))
    return real, torch.cat([torch.ones_like(real[:, :1]), real], 1)


def smt_config(**changes):
    """Eq. 5 on every step and every memory; all that matters is written out."""
    plain = {
        "steps_per_sequence": None,
        "decodes_per_sequence": None,
        "on_policy": 0.0,
        "lambda_dec": 1.0,
        "lambda_dyn": 0.3,
        "lambda_dyn_end": None,
        "lambda_unif": 0.2,
        "lambda_trunk": 0.7,
        "lambda_readout": 0.9,
        "lambda_distill": 0.0,
    }
    return SMTConfig(**(plain | changes))


# Model


def attention(q, k, v, causal=False, mask=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


def nearest_level(x, levels):
    """Straight-through: tanh, and to it the constant that makes it the nearest level."""
    grid = torch.linspace(-1, 1, levels, dtype=x.dtype)
    bounded = x.tanh()
    rounded = grid[(bounded[..., None] - grid).abs().argmin(-1)]
    return bounded + (rounded - bounded).detach()


def memory_norm(norm, memory, counted=None):
    """memory (B, S, K, D), without touching the running statistics."""
    if norm.kind == "rms":
        return memory / (memory.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    if norm.kind == "none":
        return memory
    if norm.kind == "fsq":
        return nearest_level(memory, norm.levels)
    mean, variance = norm.mean, norm.variance
    if norm.training:
        some = memory.flatten(0, 1) if counted is None else memory[counted]
        mean, variance = some.mean(0), some.var(0, correction=0)
    return (memory - mean) / (variance + 1e-5).sqrt()


def trunk_inputs(trunk, row):
    """row (t,) → (t + 1, W): the start, then each token and the few before it, one embedding table each."""
    x = [trunk.start]
    for t in range(len(row)):
        x.append(sum(trunk.embed.weight[back * VOCAB + row[t - back]] for back in range(min(trunk.local, t + 1))))
    return torch.stack(x)


def delta_rule(q, k, v, rate, log_gate):
    """One sequence, one write after another: q (L, C), k (L, R, C), v (L, R, E), rate (L, R), log_gate (L,)."""
    state, read = q.new_zeros(q.shape[-1], v.shape[-1]), []
    for t in range(len(q)):
        state = log_gate[t].exp() * state
        for key, value, beta in zip(k[t], v[t], rate[t], strict=True):
            state = state + beta * torch.outer(key, value - state.T @ key)
        read.append(state.T @ q[t])
    return torch.stack(read)


def delta_layer(block, x):
    """A layer of the delta trunk on one sequence (S, W), head by head."""
    normed, heads, writes = block.norm_attention(x), [], block.householders
    rates = block.rates(normed)
    for h, qkv in enumerate(block.qkv(normed).chunk(block.heads, -1)):
        q, k, v = qkv.view(len(x), 1 + 2 * writes, -1).split((1, writes, writes), 1)
        beta = 2 * rates[:, block.heads :].view(len(x), block.heads, writes)[:, h].sigmoid()
        log_gate = rates[:, h].sigmoid().log()
        read = delta_rule(
            q[:, 0] / q[:, 0].norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True), v, beta, log_gate
        )
        heads.append(block.norm_heads(read))
    x = x + block.project(torch.cat(heads, -1))
    return x + block.down(block.up(block.norm_mlp(x)).relu().square())


def state_label(encoder, row):
    """The whole prefix for one memory (K, D), and the trunk's logits (V,)."""
    x, transformer = trunk_inputs(encoder.trunk, row), encoder.trunk.transformer
    if hasattr(transformer.blocks[0], "householders"):
        for block in transformer.blocks:
            x = delta_layer(block, x)
        state = transformer.norm(x)[-1]
    else:
        state = transformer(x, mask=torch.ones(len(x), len(x), dtype=torch.bool).tril())[-1]
    return encoder.to_memory(state).view(encoder.shape), encoder.trunk.head(state)


def register_label(encoder, row):
    """One sequence of tokens, which are causal, and registers, which see all, and one plain pass over it."""
    x, count = trunk_inputs(encoder.trunk, row), len(encoder.registers)
    length = len(x)
    x = torch.cat([x, encoder.registers])
    mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    mask[length:] = True
    positions = torch.cat([torch.arange(length), torch.full((count,), length)])
    for block in encoder.trunk.transformer.blocks:
        x = block(x, encoder.trunk.transformer.angles(positions, x.dtype), mask=mask)
    logits = encoder.trunk.head(encoder.trunk.transformer.norm(x[length - 1]))
    return encoder.to_memory(encoder.norm(x[length:])), logits


def window_label(encoder, row):
    """The last C tokens as they are, with no padding and no mask."""
    window = row if encoder.context_len is None else row[-encoder.context_len :]
    x = encoder.transformer(torch.cat([encoder.embed(window), encoder.registers]))
    return encoder.to_memory(x[len(window) :]), None


def delta_states(k, v, rate):
    """One sequence, one write after another: k (L, C), v (L, E), rate (L,)."""
    state, states = k.new_zeros(k.shape[-1], v.shape[-1]), []
    for key, value, beta in zip(k, v, rate, strict=True):
        state = state + beta * torch.outer(key, value - state.T @ key)
        states.append(state)
    return torch.stack(states)


def store_label(encoder, row):
    """Token by token, as the delta cell does it."""
    trunk, side = encoder.trunk, encoder.trunk.side
    codes = [code / (code.square().mean() + 1e-6).sqrt() for code in trunk.embed(row)]
    nothing = torch.zeros(trunk.embed.weight.shape[1], dtype=torch.float64)
    stores = [torch.zeros(side, side, dtype=torch.float64) for _ in range(trunk.stores)]
    for t in range(len(row) + 1):
        last = torch.cat([codes[t - back] if back <= t else nothing for back in range(1, 5)])
        asks, wheres = trunk.addresses(last).view(2, trunk.stores, side)
        values, rates, read = trunk.values(last).view(trunk.stores, side), trunk.rates(last).sigmoid(), []
        for i, store in enumerate(stores):
            read.append(store.T @ (asks[i] / asks[i].norm().clamp_min(1e-12)))
            if t > 0:
                to = wheres[i] / wheres[i].norm()
                stores[i] = store + rates[i] * torch.outer(to, values[i] - store.T @ to)
        x = torch.cat([last, *read])
        state = trunk.norm(trunk.linear(x) + trunk.down(trunk.up(x).relu() ** 2))
    memory = torch.stack([encoder.to_register(state), last, *(store.flatten() for store in stores)])
    return memory, trunk.head(state)


LABELS = {"state": state_label, "register": register_label, "window": window_label, "store": store_label}


def encode(encoder, kind, tokens, steps):
    """Each memory by itself: (B, S, K, D) before normalisation, and the trunk's logits (B, S, V) or None."""
    found = [[LABELS[kind](encoder, row[:t]) for t in steps] for row in tokens]
    memory = torch.stack([torch.stack([m for m, _ in of_row]) for of_row in found])
    if kind == "window":
        return memory, None
    return memory, torch.stack([torch.stack([logits for _, logits in of_row]) for of_row in found])


def decode(decoder, memory, future):
    """One memory (K, D) and the tokens after it (F,) → (F + 1, V), one pass for each prefix of the future."""
    logits = []
    for shown in range(len(future) + 1):
        x = torch.cat([decoder.from_memory(memory) + decoder.positions, decoder.embed(future[:shown])])
        logits.append(decoder.head(decoder.transformer(x, causal=True)[-1]))
    return torch.stack(logits)


def update(rnn, memory, token):
    """f on one memory (K, D) and one token."""
    if rnn.norm == "fsq":
        inwards = 1 - 0.5 / (rnn.levels - 1)
        new = rnn.cell(torch.atanh(memory[None].clamp(-1, 1) * inwards), rnn.embed.weight[token][None])[0]
        return nearest_level(new, rnn.levels)
    new = rnn.cell(memory[None], rnn.embed.weight[token][None])[0]
    return new / (new.square().mean(-1, keepdim=True) + 1e-6).sqrt() if rnn.normalise else new


# Objectives


def predictive_loss(logits, targets):
    """logits (N, V), targets (N,)."""
    nats = [-row.log_softmax(-1)[y] for row, y in zip(logits, targets, strict=True) if y != IGNORE]
    return sum(nats) / len(nats) if nats else torch.zeros(())


def distillation_loss(logits, guide, targets):
    """logits and guide (N, V), targets (N,)."""
    rows = [(a, b) for a, b, y in zip(logits, guide, targets, strict=True) if y != IGNORE]
    return sum(-(b.detach().softmax(-1) * a.log_softmax(-1)).sum() for a, b in rows) / len(rows)


def uniformity_loss(memory):
    u = [m / m.norm() for m in memory.flatten(0, -2)]
    pairs = [torch.exp(-2 * (a - b).square().sum()) for a, b in itertools.combinations(u, 2)]
    return torch.log(sum(pairs) / len(pairs))


def variance_across(memory, real):
    """The mean over all memories after a real token of their variance across the sequences that are that long."""
    parts = []
    for t in range(1, memory.shape[1]):
        here = memory[real[:, t - 1], t]
        parts += [(here - here.mean(0)).square().mean((1, 2))]
    return torch.cat(parts).mean()


def squared_error(pairs):
    return torch.stack([(a - b).square().mean() for a, b in pairs]).mean()


def rollout_from_teacher(rnn, memory, tokens, horizon, offset):
    """f's own memories; it goes on from the teacher's at each t that is `offset` past a multiple of `horizon`."""
    rows = []
    for row, labels in zip(tokens, memory, strict=True):
        m = labels[0]
        own = [m]
        for t, token in enumerate(row[:-1]):
            if horizon < len(row) and (t - offset) % horizon == 0:
                m = labels[t]
            m = update(rnn, m, token)
            own.append(m)
        rows.append(torch.stack(own))
    return torch.stack(rows)


def own_memories(rnn, memory, tokens, distance):
    """f's own memory at each t, from the teacher's `distance` steps before, or from m_0."""
    rows = []
    for row, labels in zip(tokens, memory, strict=True):
        own = []
        for t in range(len(row)):
            begin = max(0, t - distance)
            m = labels[begin]
            for token in row[begin:t]:
                m = update(rnn, m, token)
            own.append(m)
        rows.append(torch.stack(own))
    return torch.stack(rows)


def unroll(rnn, memory, tokens, steps, offset):
    """f goes on from its own memory, and anew from `memory` at each t that is `offset` past a multiple of `steps`."""
    rows = []
    for row, starts in zip(tokens, memory, strict=True):
        m, own = starts[0], []
        for t, token in enumerate(row):
            if steps < len(row) and (t - offset) % steps == 0:
                m = starts[t]
            m = update(rnn, m, token)
            own.append(m)
        rows.append(torch.stack(own))
    return torch.stack(rows)


def smt(teacher, rnn, kind, config, batch, future_len, offset=None, distance=None):
    """Eq. 5 with every label, future and transition by itself.

    `offset` is where segments of f's own memories begin, `distance` how far they start from the teacher's.
    """
    tokens, targets = batch["tokens"], batch["targets"]
    size, length = tokens.shape
    memory, trunk = encode(teacher.encoder, kind, tokens, range(length + 1))
    real, counted = real_of(batch)
    memory = memory_norm(teacher.norm, memory, counted)
    decoded, asked, read, answers, pairs = [], [], [], [], []
    start, own = memory, memory[:, :-1]
    if config.on_policy and config.bptt_window == 1:
        own = rollout_from_teacher(rnn, memory.detach(), tokens, objectives_smt.ON_POLICY_STEPS, offset).detach()
    elif config.on_policy:
        own = torch.cat([memory[:, :1], own_memories(rnn, memory.detach(), tokens, distance).detach()[:, 1:]], 1)
    if count := round(config.on_policy * size):
        chosen = {(2 * j + 1) * size // (2 * count) for j in range(count)}
        start = torch.stack([own[b] if b in chosen else memory[b, :-1] for b in range(size)])
    made = unroll(rnn, start, tokens, config.bptt_window, offset) if config.bptt_window > 1 else None
    for b, t in itertools.product(range(size), range(length + 1)):
        future = tokens[b, t : t + future_len]
        decoded.append(decode(teacher.decoder, memory[b, t], future))
        asked.append(targets[b, t : t + len(future) + 1])
        answers.append(targets[b, t])
        if t == 0:
            predicted = memory[b, 0].detach()
        else:
            predicted = update(rnn, start[b, t - 1], tokens[b, t - 1]) if made is None else made[b, t - 1]
        read.append(rnn.readout(predicted[None])[0])
        if t > 0 and real[b, t - 1]:
            pairs.append((predicted, memory[b, t]))
    losses = {
        "loss_dec": predictive_loss(torch.cat(decoded), torch.cat(asked)),
        "loss_dyn": squared_error(pairs) / (variance_across(memory, real) if config.relative_dyn else 1.0),
        "loss_readout": predictive_loss(torch.stack(read), torch.stack(answers)),
        "loss_unif": uniformity_loss(memory[counted]),
    }
    if trunk is not None:
        losses["loss_trunk"] = predictive_loss(trunk.flatten(0, 1), targets.flatten())
    if config.lambda_distill:
        guide = teacher.decoder(memory) if trunk is None else trunk
        losses["loss_distill"] = distillation_loss(torch.stack(read), guide.flatten(0, 1), torch.stack(answers))
    losses["loss"] = sum(getattr(config, name.replace("loss", "lambda")) * value for name, value in losses.items())
    return losses


def dmt(teacher, rnn, config, batch, trunk_trained=False, offset=0, future_len=0):
    """Eq. 6 as the paper has it: one step after another, with a graph, cut between the steps, or every `unroll`-th."""
    tokens, targets = batch["tokens"], batch["targets"]
    labels = teacher.eval().encode(tokens).detach()
    pairs, logits, decoded, asked = [], [], [], []
    for row, label, real, answers in zip(tokens, labels, real_of(batch)[0], targets, strict=True):
        m = label[0]
        logits.append(rnn.readout(m[None])[0])
        for t, token in enumerate(row):
            new = update(rnn, m, token)
            if real[t]:
                pairs.append((new, label[t + 1]))
            logits.append(rnn.readout((new if config.predictive else new.detach())[None])[0])
            future = row[t + 1 : t + 1 + future_len]
            decoded.append(decode(teacher.decoder, new, future))
            asked.append(answers[t + 1 : t + 2 + len(future)])
            m = new.detach() if (t + 1 - offset) % config.bptt_window == 0 else new
    losses = {
        "loss_dyn": squared_error(pairs),
        "loss_readout": predictive_loss(torch.stack(logits), targets.flatten()),
    }
    losses["loss"] = config.lambda_dyn * losses["loss_dyn"] + config.lambda_readout * losses["loss_readout"]
    if config.lambda_dec:
        losses["loss_dec"] = predictive_loss(torch.cat(decoded), torch.cat(asked))
        losses["loss"] = losses["loss"] + config.lambda_dec * losses["loss_dec"]
    if config.lambda_distill:
        trunk = teacher.encode_with_trunk(tokens)[1]
        guide = trunk if trunk_trained and trunk is not None else teacher.decoder(labels)
        losses["loss_distill"] = distillation_loss(torch.stack(logits), guide.flatten(0, 1), targets.flatten())
        losses["loss"] = losses["loss"] + config.lambda_distill * losses["loss_distill"]
    return losses


def bptt(rnn, batch, truncate=None, first=0):
    """One token after another; the graph is cut before every `truncate`-th, counted from `first`."""
    logits = []
    for row in batch["tokens"]:
        m = rnn.m_0
        logits.append(rnn.readout(m[None])[0])
        for t, token in enumerate(row):
            if truncate and t and (t - first) % truncate == 0:
                m = m.detach()
            m = update(rnn, m, token)
            logits.append(rnn.readout(m[None])[0])
    return predictive_loss(torch.stack(logits), batch["targets"].flatten())


# Evaluation


@torch.no_grad()
def evaluate(rnn, teacher, batch):
    """Scores of the RNN alone, sequence by sequence and target by target."""
    tokens, targets = batch["tokens"], batch["targets"]
    own, memories = [], []
    for row in tokens:
        m = rnn.m_0
        steps = [m]
        for token in row:
            m = update(rnn, m, token)
            steps.append(m)
        own.append([rnn.readout(m[None])[0] for m in steps])
        memories.append(torch.stack(steps))
    labels = torch.stack([teacher.encode(row[None])[0] for row in tokens])
    theirs = [[teacher.decoder(m[None])[0] for m in row] for row in labels]
    result = {"sequences": len(tokens), "tokens": int((targets != IGNORE).sum())}
    for prefix, logits in (("", own), ("teacher_", theirs)):
        bits, hits, by_position = [], [], []
        for t in range(targets.shape[1]):
            counted = [(row[t], y[t]) for row, y in zip(logits, targets, strict=True) if y[t] != IGNORE]
            here = [float(-row.log_softmax(-1)[y]) / math.log(2) for row, y in counted]
            hits += [float(row.argmax() == y) for row, y in counted]
            by_position.append(sum(here) / len(here) if here else None)
            bits += here
        result |= {prefix + "bits_per_token": sum(bits) / len(bits), prefix + "accuracy": sum(hits) / len(hits)}
        result[prefix + "bits_by_position"] = by_position
    drift, variance, counts = [], [], []
    for t, counted in enumerate(real_of(batch)[1].T):
        counts.append(int(counted.sum()))
        own_t, label_t = torch.stack(memories)[counted, t], labels[counted, t]
        drift.append(float((own_t - label_t).square().mean()) if counts[-1] else None)
        variance.append(float(label_t.var(0, correction=0).mean()) if counts[-1] else None)
    relative = [None, *(d / v if v else None for d, v in zip(drift[1:], variance[1:], strict=True))]
    of_all, of_variance = (sum(n * x for n, x in zip(counts[1:], xs[1:], strict=True) if n) for xs in (drift, variance))
    result |= {
        "drift": of_all / sum(counts[1:]),
        "relative_drift": of_all / of_variance if of_variance else None,
        "drift_last": drift[-1],
        "relative_drift_last": relative[-1],
        "drift_by_position": drift,
        "relative_drift_by_position": relative,
    }
    return result
