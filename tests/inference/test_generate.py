"""Sampling: what is drawn, from how many, and at what cost."""

import copy
import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import tiny
from naive import VOCAB, assert_close, models
from retain import devices
from retain.config import CELLS, CellConfig, MemoryConfig, TeacherConfig
from retain.inference.complete import save_image_grid
from retain.inference.fast_step import fast_step
from retain.inference.generate import check_sampling, generate, sample
from retain.model import compiling
from retain.model.rnn import RNN


@pytest.fixture(scope="module")
def rnn():
    return models()[1].float()


@pytest.fixture
def prompt():
    return torch.tensor([[1, 2, 3], [4, 5, 6]])


def drawn(rnn, prompt, length, **settings):
    return torch.stack(list(generate(rnn, prompt, length, **settings)), 1)


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_is_the_likeliest_token_again_and_again(cell, prompt):
    rnn = models(cell=cell)[1]
    tokens = prompt
    for _ in range(12):
        logits = rnn(tokens)[0][:, -1]  # from the start each time
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(drawn(rnn, prompt, 12, temperature=0), tokens[:, 3:])


def test_with_no_prompt_it_starts_from_m_0(rnn):
    first = drawn(rnn, torch.zeros(2, 0, dtype=torch.long), 1, temperature=0)[:, 0]
    assert first.tolist() == [int(rnn.readout(rnn.m_0[None]).argmax())] * 2


def test_it_goes_on_from_a_memory(rnn, prompt):
    """Half of a text, then the other half from the memory of the first, is the whole text."""
    whole = drawn(rnn, prompt, 12, temperature=0)
    memory = rnn(torch.cat([prompt, whole[:, :5]], 1))[1]
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert torch.equal(drawn(rnn, empty, 7, temperature=0, memory=memory), whole[:, 5:])
    assert torch.equal(drawn(rnn, whole[:, 5:8], 4, temperature=0, memory=memory), whole[:, 8:])
    with pytest.raises(ValueError, match=r"memory: \(1, .*\) does not fit prompt; give \(2, "):
        generate(rnn, prompt, 1, memory=memory[:1])


def test_nothing_is_computed_before_it_is_wanted(rnn, prompt):
    """The first token needs no step beyond the prompt, and there is none behind the last."""
    steps = []

    def step(token, memory):
        steps.append(token)
        return rnn.step(token, memory)

    stream = generate(rnn, prompt, 3, step=step)
    for count in range(3):
        next(stream)
        assert len(steps) == count
    assert next(stream, None) is None and len(steps) == 2


def test_a_step_can_be_exported(rnn):
    """With `torch.export`, for so many streams; of an RNN as `load` gives it."""
    rnn = copy.deepcopy(rnn).eval().requires_grad_(False)

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnn

        def forward(self, token, memory):
            return self.rnn.step(token, memory)

    program = torch.export.export(Step(), (torch.tensor([1, 2]), rnn.init_memory(2)))
    token, memory = torch.tensor([3, 0]), torch.randn(2, *rnn.m_0.shape)
    for found, wanted in zip(program.module()(token, memory), rnn.step(token, memory), strict=True):
        assert_close(found, wanted)


def test_the_prompt_matters(rnn):
    found = {tuple(drawn(rnn, torch.tensor([[a, a]]), 8, seed=1)[0].tolist()) for a in range(VOCAB)}
    assert len(found) > 1


def test_same_seed_same_tokens(rnn, prompt):
    one = drawn(rnn, prompt, 30, seed=3)
    torch.manual_seed(99)  # the global generator is not the one that counts
    state = torch.get_rng_state()
    assert torch.equal(drawn(rnn, prompt, 30, seed=3), one)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(drawn(rnn, prompt, 30, seed=4), one)
    assert torch.equal(drawn(rnn, prompt, 10, seed=3), one[:, :10])


def test_of_equal_ones_no_more_than_k_are_kept():
    drawn = {int(sample(torch.zeros(1, 9), top_k=2, generator=torch.Generator().manual_seed(s))) for s in range(200)}
    assert len(drawn) == 2


def test_one_is_greedy(rnn, prompt):
    greedy = drawn(rnn, prompt, 30, temperature=0)
    assert torch.equal(drawn(rnn, prompt, 30, top_k=1), greedy)
    assert torch.equal(drawn(rnn, prompt, 30, top_p=1e-6), greedy)
    assert torch.equal(drawn(rnn, prompt, 30, temperature=1e-5), greedy)


def shares(logits, **settings):
    """Frequency of each token among many draws."""
    tokens = sample(logits.expand(20_000, -1), generator=torch.Generator().manual_seed(0), **settings)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / 20_000


PROBABILITY = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 50}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.64}, [1, 3]),
        ({"top_p": 0.7}, [1, 3, 4]),
        ({"top_p": 0.99}, [0, 1, 2, 3, 4]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # of what top_k left, 0.65 / 0.85 reaches it
    ],
    ids=str,
)
def test_the_fewest_are_kept_and_drawn_as_often_as_they_are_likely(settings, kept):
    expected = torch.zeros(5)
    expected[kept] = PROBABILITY[kept] / PROBABILITY[kept].sum()
    found = shares(PROBABILITY.log(), **settings)
    assert (found[expected == 0] == 0).all()
    assert_close(found, expected, 0.02)


def test_temperature_sharpens_and_flattens():
    for temperature in (0.5, 2.0):
        expected = PROBABILITY ** (1 / temperature)
        assert_close(shares(PROBABILITY.log(), temperature=temperature), expected / expected.sum(), 0.02)
    assert shares(PROBABILITY.log(), temperature=0)[1] == 1


def test_rows_are_drawn_each_from_their_own():
    logits = torch.full((3, 5), -1e4)
    logits[range(3), [4, 0, 2]] = 0
    for settings in ({}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0}):
        assert sample(logits, **settings).tolist() == [4, 0, 2]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"length": -1}, "length: -1 must not be negative"),
        ({"temperature": -0.1}, "temperature: -0.1 must be 0"),
        ({"temperature": float("nan")}, "temperature: nan must be 0"),
        ({"temperature": float("inf")}, "temperature: inf must be 0"),
        ({"top_k": 0}, "top_k: 0 must be at least 1"),
        ({"top_p": 0.0}, "top_p: 0.0 must lie in 0 … 1, above 0"),
        ({"top_p": 1.5}, "top_p: 1.5 must lie in 0 … 1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_at_once(rnn, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(rnn, prompt, **({"length": 3} | settings))  # before the first token is asked for
    with pytest.raises(ValueError, match=message):
        check_sampling(**({"length": 3, "temperature": 1.0, "top_k": None, "top_p": None} | settings))


def test_length_is_what_is_yielded(rnn, prompt):
    for length in (0, 1, 7):
        tokens = list(generate(rnn, prompt, length))
        assert len(tokens) == length
        assert all(t.shape == (2,) and t.min() >= 0 and t.max() < VOCAB for t in tokens)


def test_the_callers_code_keeps_its_gradients(rnn, prompt):
    trained = copy.deepcopy(rnn).train()
    for token in generate(rnn, prompt, 2):
        trained.step(token, trained.init_memory(2))[0].sum().backward()
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert (torch.ones(1, requires_grad=True) * 2).requires_grad


def live_bytes():
    """Of every tensor that can be reached, each storage counted once."""
    gc.collect()
    storages = [x.untyped_storage() for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


class Elements(TorchDispatchMode):
    """Counts the elements that are computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += sum(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
        return out


def test_memory_and_work_do_not_grow_with_the_stream():
    memory = MemoryConfig(tokens=1, width=4, norm="batch")
    readout = TeacherConfig(encoder="state", width=4, heads=1, layers=1, decoder_layers=1, future_len=1)
    rnn = RNN(VOCAB, memory, readout, CellConfig(kind="lstm", width=4, heads=1, layers=1, residual=False))
    rnn.readout = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(4, VOCAB))  # cheap: a step is all overhead
    live, work = {}, {}
    stream = generate(rnn, torch.zeros(1, 1, dtype=torch.long), 5000)
    for i in range(1, 5001):
        if i in (64, 1000, 4096, 5000):
            with Elements() as counted:
                token = next(stream)
            live[i], work[i] = live_bytes(), counted.count
        else:
            next(stream)
    assert token.shape == (1,)
    assert len(set(live.values())) == 1, live
    assert len(set(work.values())) == 1 and work[64] > 0, work


def test_the_measure_of_memory_tells():
    before = live_bytes()
    kept = [torch.zeros(100) for _ in range(3)]
    assert live_bytes() - before == len(kept) * 400


class NormedCell(torch.nn.Module):
    """A user's own, with a norm, which takes memory and weights of one dtype only."""

    def __init__(self, memory):
        super().__init__()
        self.norm, self.map = torch.nn.LayerNorm(memory.width), torch.nn.Linear(memory.width, memory.width)

    def forward(self, memory, inputs):
        return torch.lerp(memory, inputs[:, None].expand_as(memory), 0.1) + self.map(self.norm(memory))


def test_a_fast_step_in_bfloat16_leaves_a_users_cell_alone(monkeypatch):
    monkeypatch.setattr(devices, "fast_bf16", lambda device: True)
    monkeypatch.setattr(compiling, "can_compile", lambda device: False)
    monkeypatch.setattr("retain.inference.fast_step.BF16_PRODUCTS", 0)
    memory = MemoryConfig(tokens=2, width=8, norm="batch")
    readout = TeacherConfig(encoder="state", width=8, heads=1, layers=1, decoder_layers=1, future_len=1)
    rnn = RNN(VOCAB, memory, readout, CellConfig(), NormedCell(memory))
    token, held = torch.tensor([1, 2, 3]), rnn.init_memory(3)
    logits, after = fast_step(rnn, 3)(token, held)
    assert after.dtype == torch.float32
    for got, wanted in zip((logits, after), rnn.step(token, held), strict=True):
        assert_close(got, wanted.detach(), 0.05)


@pytest.mark.parametrize("length", [1, 4, 9])
def test_a_prompt_read_in_parts_is_the_prompt(rnn, length, monkeypatch):
    prompt = torch.randint(VOCAB, (2, length))
    monkeypatch.setattr("retain.inference.generate.READ_AT_ONCE", 4 * rnn.init_memory(2).numel())
    read, lengths, held = rnn.rollout, [], []
    monkeypatch.setattr(rnn, "rollout", lambda tokens, memory: lengths.append(tokens.shape[1]) or read(tokens, memory))

    def step(token, memory):
        held.append(memory)
        return rnn.step(token, memory)

    list(generate(rnn, prompt, 2, step=step))
    assert lengths == [4] * (length // 4) + [length % 4] * (length % 4 > 0)
    assert_close(held[0], read(prompt, rnn.init_memory(2))[:, -1].detach())


def test_a_long_prompt_costs_no_more_memory(rnn):
    held = {}
    for length in (64, 4096):
        prompt = torch.zeros(1, length, dtype=torch.long)
        stream = generate(rnn, prompt, 1)
        before = live_bytes()
        next(stream)
        held[length] = live_bytes() - before
    assert held[64] == held[4096]


def test_image_grid(tmp_path):
    from PIL import Image

    tokens = torch.zeros(3, 4, dtype=torch.long)
    tokens[1] = 7
    save_image_grid(tokens, (2, 2), 8, tmp_path / "grid.png", columns=2)
    with Image.open(tmp_path / "grid.png") as image:
        size, pixel = image.size, image.getpixel
        assert size == (2 * (48 + 4) + 4, 2 * (48 + 4) + 4) and image.mode == "L"
        assert pixel((10, 10)) == 0 and pixel((70, 10)) == 255 and pixel((10, 70)) == 0
        assert pixel((1, 1)) == 64 and pixel((70, 70)) == 64  # gaps, and the cell that has no image


def test_dropout_is_off_while_it_works_and_the_mode_is_as_it_was(prompt):
    """A user's cell may have dropout, and be sampled from in the middle of training."""
    from torch import nn

    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.dropout = nn.Linear(8, 8), nn.Dropout(0.5)

        def forward(self, memory, inputs):
            return self.dropout(self.layer(memory + inputs[:, None]))

    config = tiny()
    torch.manual_seed(0)
    rnn = RNN(9, config.memory, config.teacher, config.cell, Forgetful())
    wanted = drawn(rnn.eval(), prompt, 20, temperature=0.0)
    rnn.train()
    rnn.readout.eval()
    modes = [part.training for part in rnn.modules()]
    tokens = []
    for token in generate(rnn, prompt, 20, temperature=0.0):
        assert [part.training for part in rnn.modules()] == modes
        tokens.append(token)
    assert torch.equal(torch.stack(tokens, 1), wanted)
