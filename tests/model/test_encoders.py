"""Encoders and decoder: equal to their naive twins, and causal in the one sense that matters."""

import pytest
import torch

import naive
from naive import VOCAB, assert_close, gradients, models, most_held
from retain.model.encoders import LOCAL
from retain.objectives.smt import futures

KINDS = [("state", None), ("register", None), ("window", None), ("window", 3), ("state", "delta"), ("store", None)]
LENGTH = 7  # more than LOCAL and than the window


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def kind(request):
    return request.param


def encoders(kind, **settings):
    """The models of one of KINDS: what stands beside an encoder is its window, or its trunk."""
    of_kind = {"trunk": "delta"} if kind[1] == "delta" else {"context_len": kind[1]}
    return models(kind[0], **of_kind, **settings)


@pytest.fixture
def tokens():
    return torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def test_lengths_reach_past_what_a_position_sums():
    assert LOCAL < LENGTH


@pytest.mark.parametrize("group", [16, 3])
@pytest.mark.parametrize("steps", [range(LENGTH + 1), [0, 1, 4], [5], [6, 2]], ids=str)
def test_encoder_equals_naive(kind, tokens, steps, group, monkeypatch):
    monkeypatch.setattr("retain.model.encoders.GROUP", group)  # of labels of the register encoder; the last is not full
    encoder = encoders(kind)[0].encoder
    fast, fast_trunk = encoder(tokens, torch.tensor(list(steps)))
    slow, slow_trunk = naive.encode(encoder, kind[0], tokens, steps)
    assert fast.shape == (3, len(steps), *((4, 16) if kind[0] == "store" else (2, 4)))
    assert_close(fast, slow)
    weights = torch.randn_like(fast)
    assert_close(gradients((fast * weights).sum(), encoder), gradients((slow * weights).sum(), encoder))
    if kind[0] == "window":
        assert fast_trunk is None
    else:
        assert fast_trunk.shape == (3, LENGTH + 1, VOCAB)
        assert_close(fast_trunk[:, list(steps)], slow_trunk)


@pytest.mark.parametrize("norm", ["rms", "batch"])
def test_memory_is_blind_to_what_it_has_not_read(kind, tokens, norm):
    teacher = encoders(kind, norm=norm)[0].eval()
    before, trunk_before = teacher.encode_with_trunk(tokens)
    for s in range(LENGTH):
        changed = tokens.clone()
        changed[:, s] = (changed[:, s] + 1) % VOCAB
        after, trunk_after = teacher.encode_with_trunk(changed)
        moved = (after - before).abs().amax((0, 2, 3))  # by t
        assert moved[: s + 1].max() < 1e-12, f"m_t for t <= {s} saw x_{s}"
        assert moved[s + 1] > 1e-6, f"m_{s + 1} did not see x_{s}"
        if kind[0] == "window" and kind[1] is not None:
            assert s + kind[1] >= LENGTH or moved[s + 1 + kind[1] :].max() < 1e-12
        else:
            assert moved[s + 1 :].min() > 1e-9
        if trunk_before is not None:
            moved = (trunk_after - trunk_before).abs().amax((0, 2))
            assert moved[: s + 1].max() < 1e-12 and moved[s + 1] > 1e-6


def test_m_0_is_the_empty_context_whatever_the_tokens(kind, tokens):
    teacher = encoders(kind)[0]
    assert teacher.training
    statistics = {k: v.clone() for k, v in teacher.norm.state_dict().items()}
    m_0 = teacher.empty_memory()
    assert teacher.training and not m_0.requires_grad and m_0.shape == ((4, 16) if kind[0] == "store" else (2, 4))
    assert_close(dict(teacher.norm.state_dict()), statistics)
    teacher.eval()
    for row in (tokens, (tokens + 1) % VOCAB, tokens[:, :1], tokens[:, :0]):
        assert_close(teacher.encode(row)[:, 0], m_0.expand(3, -1, -1))


def test_steps_are_labelled_independently(kind, tokens):
    teacher = encoders(kind)[0].eval()
    every = teacher.encode(tokens)
    for steps in ([3], [2, 3, 4], [0, LENGTH]):
        assert_close(teacher.encode(tokens, torch.tensor(steps)), every[:, steps])


def test_decoder_equals_naive(tokens):
    decoder = models()[0].decoder
    memory = torch.randn(3, 4, 2, 4, dtype=torch.float64, requires_grad=True)
    future = torch.randint(VOCAB, (3, 4, 3))
    fast = decoder(memory, future)
    slow = torch.stack(
        [torch.stack([naive.decode(decoder, memory[b, s], future[b, s]) for s in range(4)]) for b in range(3)]
    )
    assert fast.shape == (3, 4, 4, VOCAB)
    assert_close(fast, slow)
    weights = torch.randn_like(fast)
    assert_close(gradients((fast * weights).sum(), decoder), gradients((slow * weights).sum(), decoder))
    assert_close(*(torch.autograd.grad((x * weights).sum(), memory)[0] for x in (fast, slow)))
    # With no future it is the readout, whose weights it shares.
    assert_close(decoder(memory), fast[:, :, 0])


def test_decoder_sees_the_past_through_memory_alone(tokens):
    decoder = models()[0].decoder
    targets, t = torch.zeros(3, LENGTH + 1, dtype=torch.long), 3
    memory = torch.randn(3, 1, 2, 4, dtype=torch.float64)

    def logits(tokens, memory=memory):
        return decoder(memory, futures(tokens, targets, torch.tensor([t]), 3)[0])[:, 0]  # (B, F + 1, V)

    before = logits(tokens)
    for s in range(LENGTH):
        changed = tokens.clone()
        changed[:, s] = (changed[:, s] + 1) % VOCAB
        moved = (logits(changed) - before).abs().amax((0, 2))
        # x_{t + i} is shown for y_{t + i + 1} and later, never for itself.
        seen = max(0, s - t + 1) if t <= s < t + 3 else 0
        assert moved[: seen or None].max() < 1e-12
        assert not seen or moved[seen:].min() > 1e-6
    changed = memory.clone()
    changed[1] += 1
    moved = (logits(tokens, changed) - before).abs().amax((1, 2))
    assert moved[1] > 1e-3 and moved[[0, 2]].max() < 1e-12


@pytest.mark.parametrize("context_len", [None, 3, LENGTH])
def test_windows_of_a_known_width_hold_the_same(context_len, tokens, monkeypatch):
    """Where a look at the steps would wait for the device, windows are padded to the widest there can be."""
    teacher = models("window", context_len=context_len)[0].eval()
    for steps in (torch.tensor([0]), torch.tensor([1, 2]), torch.arange(LENGTH + 1)):
        near = teacher.encode(tokens, steps)
        with monkeypatch.context() as patch:
            patch.setattr("torch.compiler.is_compiling", lambda: True)
            padded = teacher.encode(tokens, steps)
        torch.testing.assert_close(padded, near)
        weights = torch.randn_like(near)
        found = [gradients((memory * weights).sum(), teacher.encoder) for memory in (padded, near)]
        torch.testing.assert_close(*found)
    assert teacher.empty_memory().isfinite().all()


@pytest.mark.parametrize("context_len", [None, 3])
def test_windows_read_a_few_at_a_time_hold_the_same(context_len, tokens, monkeypatch):
    """Without a gradient not all steps are read at once: of a whole validation they would fill a GPU."""
    teacher = models("window", context_len=context_len)[0].eval()
    with torch.no_grad():
        whole, widths = teacher.encode(tokens), []
        embed = teacher.encoder.embed.forward
        monkeypatch.setattr(teacher.encoder.embed, "forward", lambda x: widths.append(x.numel()) or embed(x))
        monkeypatch.setattr("retain.model.encoders.WINDOW_NUMBERS", 200)
        torch.testing.assert_close(teacher.encode(tokens), whole)
    assert len(widths) > 2 and max(widths) * teacher.encoder.embed.embedding_dim <= 200


@pytest.mark.parametrize("kind", ["state", "register", "window"])
def test_logits_that_are_not_wanted_leave_the_memory_as_it_is(kind, tokens):
    teacher = models(kind)[0].eval()
    memory, logits = teacher.encode_with_trunk(tokens)
    assert (logits is None) == (kind == "window")
    without, none = teacher.encode_with_trunk(tokens, logits=False)
    assert none is None
    torch.testing.assert_close(without, memory, rtol=0, atol=0)


@pytest.mark.parametrize("wanted", [[0, 3, 5], range(LENGTH + 1)], ids=len)
def test_layers_computed_again_are_the_same_and_not_held(kind, tokens, wanted):
    if kind[0] == "store":
        pytest.skip("it has one layer")
    found, most = [], []
    for recompute in (False, True):
        encoder = encoders(kind, recompute=recompute)[0].encoder

        def loss(encoder=encoder):
            memory, logits = encoder(tokens, torch.tensor(list(wanted)))
            return memory.square().sum() + (0 if logits is None else logits.square().sum())

        found.append((loss(), gradients(loss(), encoder)))
        most.append(most_held(loss))
    for held, again in zip(*found, strict=True):
        assert_close(again, held)
    assert most[1] < 0.75 * most[0]  # two layers
