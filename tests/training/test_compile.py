"""torch.compile: the same losses, one note where it fails, and nothing is tried twice."""

import copy
import json
import logging
import pickle
import shlex
import shutil
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils import cpp_extension

import naive
from conftest import tiny
from naive import VOCAB, assert_close, models
from retain import devices
from retain.inference.fast_step import check_first_step, fast_step
from retain.inference.generate import generate
from retain.model import compiling
from retain.model.fast import fast
from retain.model.layers import Embedding, Norm
from retain.ops.elementwise import squared_relu
from retain.training.loop import train
from runs import Crash, lines, run

COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
needs_compiler = pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler")


def losses(out):
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def captured(monkeypatch):
    """torch.compile captures forward and backward as ever, and runs them without making C++ of them, in a few seconds.

    Returns what was captured."""
    compile, names = torch.compile, []

    def capture(function, options=None):
        names.append(function.__qualname__)
        return compile(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", capture)
    yield names
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder, cell", [("state", "mlp"), ("window", "transformer"), ("register", "gated")])
def test_a_compiled_run_has_the_losses_of_an_eager_one(encoder, cell, tmp_path, caplog, captured, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    settings = {"phases": ("smt", "dmt"), "budget": "4steps", "validation_sequences": 4, "memory__norm": "rms"}
    settings |= {"teacher__encoder": encoder, "cell__kind": cell}
    for compiled in (False, True):
        train(tiny(compile=compiled, **settings), tmp_path / str(compiled), progress_bar=False)
    # Under rms the gated cell steps, too: its rollout written by hand has no normalisation.
    of_cell = {"mlp": "MLPCell", "transformer": "TransformerCell", "gated": "GatedCell"}[cell]
    assert captured == [f"{part}.forward" for part in (f"{encoder.title()}Encoder", "Decoder", "Readout", of_cell)]
    assert_close(losses(tmp_path / "True"), losses(tmp_path / "False"), 1e-4)
    assert "compile:" not in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", ["transformer", "mlp", "lstm"])
def test_a_cell_is_compiled_with_gradient_and_without_and_no_more_often(cell, tmp_path, captured, monkeypatch):
    """Whatever a run asks of it: stretches, on-policy starts, horizons that grow, validation, phases of other sizes."""
    monkeypatch.setattr(shutil, "which", lambda name: name)
    keep = compiling.compiled
    monkeypatch.setattr(compiling, "compiled", lambda f, name: keep(f, name) if name == "cell" else f)
    settings = {
        "smt__bptt_window": 3,
        "smt__on_policy": 0.5,
        "dmt__bptt_window": 2,
        "dmt__horizon": 2,
    }
    settings |= {"smt__batch_size": 4, "dmt__batch_size": 6, "bptt__batch_size": 5, "validation_sequences": 3}
    config = tiny(
        compile=True, phases=("smt", "dmt", "bptt"), budget="18steps", validate_every="3steps", cell__kind=cell,
        memory__norm="rms", **settings
    )  # fmt: skip
    counters.clear()
    train(config, tmp_path / "run", progress_bar=False)
    assert counters["stats"]["unique_graphs"] == 2


class OwnCell(nn.Module):
    """A user's."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, memory, inputs):
        return memory + self.mix(inputs)[:, None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ends", ["well", "badly"])
@pytest.mark.parametrize("encoder, norm", [("state", "batch"), ("window", "rms"), ("register", "rms")])
def test_the_callers_modules_stay_as_they_are_and_copies_are_their_own(
    ends, encoder, norm, tmp_path, captured, monkeypatch
):
    """During a compiled run and after it, however it ends."""
    monkeypatch.setattr(shutil, "which", lambda name: name)
    models, make = [], compiling.fast_parts
    monkeypatch.setattr("retain.training.loop.fast_parts", lambda *args: models.extend(args[:2]) or make(*args))
    cell, tokens, seen = OwnCell(), torch.arange(10).view(2, 5) % 5, []

    def look(during):
        rnn, teacher = models
        parts = teacher.encoder, teacher.decoder, rnn.readout, cell
        assert rnn.cell is cell and not any("forward" in vars(part) for part in parts)
        assert [fast(part) is not part for part in parts] == [during] * 4
        for own, guide in (copy.deepcopy(models), pickle.loads(pickle.dumps(models))):
            naive.randomise(own), naive.randomise(guide.eval())

            def told(own=own, guide=guide):
                return own(tokens)[0], guide.decoder(guide.encode(tokens), tokens[:, None, :3].expand(-1, 6, -1))

            before = told()
            assert all(x.isfinite().all() and x.any() for x in before)
            kept = copy.deepcopy([part.state_dict() for part in models])
            with torch.no_grad():
                for p in (*rnn.parameters(), *teacher.parameters()):
                    p.zero_()
            assert all(torch.equal(x, y) for x, y in zip(told(), before, strict=True)), "weights of the original"
            for part, state in zip(models, kept, strict=True):
                part.load_state_dict(state)

    def at(number):
        seen.append(number)
        look(during=True)
        if ends == "badly" and number == 5:
            raise Crash

    settings = {"phases": ("smt", "dmt"), "budget": "6steps", "memory__norm": norm, "teacher__encoder": encoder}
    with pytest.raises(Crash) if ends == "badly" else nullcontext():
        run(tiny(compile=True, **settings), tmp_path / "run", at, cell=cell)
    assert seen == [*range(6)] and len(captured) == 4
    look(during=False)


@pytest.mark.filterwarnings("ignore")
def test_hooks_of_an_own_cell_are_called_in_a_compiled_run(tmp_path, captured, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    cell, called = OwnCell(), []
    cell.register_forward_hook(lambda *args: called.append(1))
    train(tiny(compile=True, budget="2steps", phases=("smt",)), tmp_path / "run", cell=cell, progress_bar=False)
    assert called


def test_parts_are_compiled_for_what_is_run_often(tmp_path, monkeypatch):
    """Nothing for validation alone but the encoder, whose labels DMT wants without a gradient; and no empty memory."""
    ran = set()

    def watched(function, name):
        def call(first, *args, **settings):
            ran.add((name, torch.is_grad_enabled(), first.shape[1] > 0))
            return function(first, *args, **settings)

        return call

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(compiling, "compiled", watched)
    train(tiny(compile=True, budget="4steps"), tmp_path / "run", progress_bar=False)
    both, one = ("encoder", "cell"), ("encoder", "cell", "decoder", "readout")
    assert ran == {(name, False, True) for name in both} | {(name, True, True) for name in one}


@pytest.mark.parametrize(
    "changes, steps",
    [
        ({}, {"smt": 1 + 8, "dmt": 32}),
        ({"budget": "15s"}, {"smt": 1 + 1, "dmt": 1}),
    ],
)
def test_what_compiling_takes_comes_off_the_whole_budget(changes, steps, tmp_path, monkeypatch):
    """Else the first phase would spend its share on it."""
    seconds = [0.0]
    monkeypatch.setattr("retain.runs.progress.time.perf_counter", lambda: seconds[0])
    monkeypatch.setattr("retain.training.loop.fast_parts", lambda *models: {})

    def pass_time(number):
        seconds[0] += 1 if number else 20

    config = tiny(compile=True, smt__share=0.2, dmt__share=0.8, **{"budget": "60s"} | changes)
    run(config, tmp_path / "run", at=pass_time)
    phases = [line["phase"] for line in lines(tmp_path / "run") if "loss" in line]
    assert {phase: phases.count(phase) for phase in config.phases} == steps
    assert seconds[0] == sum(steps.values()) + 19


def test_without_a_compiler_there_is_a_note_and_an_eager_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch, "compile", lambda *_: pytest.fail("nothing can be compiled"))
    train(tiny(compile=True, budget="2steps"), tmp_path / "run", progress_bar=False)
    assert len(losses(tmp_path / "run")) == 2
    assert [r.message for r in caplog.records].count(
        "compile: no C++ compiler on the PATH; going on without torch.compile"
    ) == 1


def test_what_fails_to_compile_runs_as_it_is_and_is_not_tried_again(caplog, monkeypatch):
    tried = []

    def broken(*args):
        tried.append(args)
        raise RuntimeError("no such luck\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda function, options=None: broken)
    double = compiling.compiled(lambda x: 2 * x, "cell")
    with caplog.at_level(logging.WARNING):
        assert [double(x) for x in (1, 2, 3)] == [2, 4, 6]
    assert tried == [(1,)]
    assert [r.message for r in caplog.records] == [
        "compile: the cell failed to compile (no such luck); going on without torch.compile"
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_embedding_has_the_rows_and_the_gradient_of_one_that_is_not(captured):
    torch.manual_seed(0)
    embed, where, weights = Embedding(5, 4), torch.randint(5, (3, 6)), torch.randn(3, 6, 4)
    gradients = []
    for compiled, lookup in enumerate((embed.forward, torch.compile(embed.forward))):
        rows = lookup(where)
        assert torch.equal(rows, embed.weight[where])
        with torch.profiler.profile() as profile:
            gradients += torch.autograd.grad((rows * weights).sum(), embed.weight)
        assert ("retain::add_rows" in [event.key for event in profile.key_averages()]) == compiled
    assert_close(gradients[1], gradients[0], 1e-6)


@needs_compiler
@pytest.mark.filterwarnings("ignore")
def test_a_compiler_that_is_there_compiles(caplog):
    norm = Norm(4)
    fast = compiling.compiled(lambda x: squared_relu(norm(x)), "norm")
    x = torch.randn(3, 4, requires_grad=True)
    weights = torch.randn(3, 4)
    found = [(y, *torch.autograd.grad((y * weights).sum(), (x, norm.gain))) for y in (fast(x), squared_relu(norm(x)))]
    torch._dynamo.reset()
    for a, b in zip(*found, strict=True):
        assert_close(a, b)
    assert "Compiled" in type(found[0][0].grad_fn).__name__ and "compile:" not in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_draws_the_same(caplog, captured, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(devices, "fast_bf16", lambda device: False)  # rounding draws another token now and then
    rnn = models(cell="gated")[1].float().eval()
    prompt = torch.tensor([[1, 2], [3, 4]])
    fast = list(generate(rnn, prompt, 20, seed=1, step=fast_step(rnn)))
    assert captured == ["RNN.step"]
    assert_close(torch.stack(fast), torch.stack(list(generate(rnn, prompt, 20, seed=1))))
    assert "compile:" not in caplog.text


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell, tokens", [("transformer", 2), ("transformer", 1), ("gated", 2)])
def test_a_step_compiled_for_a_cpu_is_the_step_of_its_weights_then(cell, tokens, caplog, monkeypatch):
    monkeypatch.setattr(devices, "fast_bf16", lambda device: False)
    # Kernels of its own for every product: which are the fastest depends on the machine, and takes long to find.
    monkeypatch.setitem(compiling.STEP_ON_CPU, "max_autotune_gemm_backends", "CPP")
    counters.clear()
    rnn = models(cell=cell, layers=1, tokens=tokens)[1].float().eval()
    token, memory = torch.tensor([3]), rnn.init_memory(1)
    kept = memory.detach().clone()  # memory is m_0 itself, a parameter
    step = fast_step(rnn)
    with torch._inductor.config.patch(fx_graph_cache=False):
        exact, fast = rnn.step(token, memory), step(token, memory)
    with torch.no_grad():
        for p in rnn.parameters():
            p.zero_()
        later = step(token, kept)
    step(fast[0].argmax(-1), fast[1])
    torch._dynamo.reset()
    assert_close(fast[0], exact[0])
    assert_close(fast[1], exact[1])
    assert torch.equal(later[1], fast[1])
    assert counters["stats"]["unique_graphs"] == 1, "compiled once, whatever kind of tensor it is given"
    assert counters["inductor"]["cpp_templated_kernel_counter"], "weights are constants, with kernels of their own"
    assert "compile:" not in caplog.text


@needs_compiler
@pytest.mark.filterwarnings("ignore")
def test_kernels_are_tried_in_silence(caplog, capfd):
    layer, x = nn.Linear(32, 32), torch.randn(1, 32)
    counters.clear()
    with torch.inference_mode(), torch._inductor.config.patch(fx_graph_cache=False, autotune_local_cache=False):
        fast = compiling.compiled(lambda x: layer(x), "layer", compiling.STEP_ON_CPU)(x)
        torch._dynamo.reset()
        assert_close(fast, layer(x))
    assert counters["inductor"]["select_algorithm_autotune"] == 1
    assert "compile:" not in caplog.text and "autotune" not in "".join(capfd.readouterr()).lower()


def test_kernels_that_are_wrong_are_not_taken(caplog):
    used = []

    def plus(amount, name):
        def step(token, memory):
            used.append(name)
            return memory + amount, memory * amount

        return step

    token, memory = torch.tensor([0]), torch.full((1, 2, 3), 100.0)
    for amount, taken in ((1.0005, "fast"), (1.2, "otherwise"), (float("nan"), "otherwise")):
        used.clear()
        caplog.clear()
        step = check_first_step(
            plus(amount, "fast"), plus(1.0, "exact"), lambda: plus(1.0, "otherwise"), tolerance=1e-3
        )
        for _ in range(3):
            step(token, memory)
        assert used == ["fast", "exact", taken, taken, taken]
        assert caplog.text.count("wrong at this size") == (taken == "otherwise")


def test_an_option_that_the_compiler_does_not_know_is_left_out(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "compile", lambda function, options=None: given.append(options))
    compiling.compiled(abs, "abs", {"freezing": True, "of another year": 1})
    compiling.compiled(abs, "abs")
    assert given == [{"freezing": True}, None]


def test_the_compiler_finds_pytorch_in_any_folder(monkeypatch):
    """The command that it is given is a line, cut at its spaces."""
    monkeypatch.setattr(torch, "compile", lambda function, options=None: function)
    monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", "/my é/torch/lib")
    command = compiling.compiled(lambda: f"g++ -L{cpp_extension.TORCH_LIB_PATH} -ltorch", "command")
    for _ in range(2):
        assert shlex.split(command()) == ["g++", "-L/my é/torch/lib", "-ltorch"]
    assert cpp_extension.TORCH_LIB_PATH == "/my é/torch/lib"


def test_the_compiler_has_its_settings_while_it_works_and_the_caller_has_his_own_after(monkeypatch):
    def seen():
        return torch._functorch.config.force_non_lazy_backward_lowering, torch._inductor.config.freezing

    monkeypatch.setattr(torch, "compile", lambda function, options=None: function)
    before = seen()
    assert before == (False, False)
    step, part = compiling.compiled(seen, "step", {"freezing": True}), compiling.compiled(seen, "part")
    assert [step(), step()] == [(False, True), before], "a step is compiled at its first call alone, with no gradient"
    assert [part(), part()] == [(True, False)] * 2, "a part may be compiled for another shape"
    assert seen() == before


@pytest.mark.parametrize("cell", ["transformer", "mlp", "gated", "delta", "gru", "lstm", "elman"])
def test_autocast_does_not_round_what_is_remembered(cell):
    rnn = models(cell=cell)[1].float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        memories = rnn.rollout(torch.arange(2 * VOCAB).view(2, -1) % VOCAB, rnn.init_memory(2))
    assert memories.dtype == torch.float32
    assert (memories != memories.bfloat16().float()).any()


def test_weights_in_bfloat16_keep_the_memory_in_float32(monkeypatch):
    monkeypatch.setattr(devices, "fast_bf16", lambda device: True)
    monkeypatch.setattr(compiling, "can_compile", lambda device: False)
    monkeypatch.setattr("retain.inference.fast_step.BF16_PRODUCTS", 10_000)
    for cell in ("gated", "delta", "transformer", "gru", "lstm"):
        rnn = models(cell=cell)[1].float().eval()
        token, memory = torch.arange(VOCAB), rnn.init_memory(VOCAB)
        with torch.inference_mode():
            logits, new = fast_step(rnn, batch=VOCAB)(token, memory)
            exact, exact_new = rnn.step(token, memory)
        assert new.dtype == logits.dtype == torch.float32
        assert rnn.m_0.dtype == torch.float32
        for found, wanted in ((logits, exact), (new, exact_new)):
            # Weights and what passes between layers are rounded to 0.4 % each.
            assert (found - wanted).norm() < 0.04 * wanted.norm(), cell
        assert not torch.equal(new, exact_new)
        assert (new != new.bfloat16().float()).any(), "what is remembered is not rounded to bfloat16"
        with torch.inference_mode():  # one stream of so small an RNN is faster as it is
            assert_close(fast_step(rnn)(token, memory)[1], exact_new)
