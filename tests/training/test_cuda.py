"""The same on a GPU: bf16, a fused optimizer, training, resuming, evaluation and generation.

Without one, test_pretend_cuda.py runs these on tensors that only say so.
"""

import copy
import dataclasses
import json
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import tiny
from naive import attention as naive_attention
from naive import batch, models, padded, smt_config
from retain.cli import main
from retain.config import CELLS, DMTConfig, data_config
from retain.config.presets import PRESETS
from retain.data import load_data
from retain.inference.evaluate import evaluate
from retain.inference.fast_step import fast_step
from retain.inference.generate import generate
from retain.inference.text import Text
from retain.model.compiling import fast_parts
from retain.model.fast import using
from retain.model.rnn import _GRAPHS
from retain.objectives import BPTT, DMT, SMT
from retain.ops import attention as attending
from retain.ops import delta_rollout, gated_rollout
from retain.ops.graphs import _ALL, forget, launched
from retain.runs.run import build, load_run
from retain.runs.trunk import with_labels_of, with_source
from retain.serve.batch import AHEAD, Batch, Stream
from retain.serve.codec import Bytes
from retain.serve.sampling import Sampling
from retain.training.label import make_labels
from retain.training.loop import take_step, train
from runs import losses

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN"),
]


def test_products_are_in_bfloat16_squares_are_not_and_devices_do_not_mix():
    layer, x = torch.nn.Linear(4, 3).to("cuda:0"), torch.ones(2, 4)
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x.to("cuda:0"))
        assert y.dtype == torch.bfloat16 and y.square().dtype == torch.float32
    with pytest.raises(RuntimeError, match="same device"):
        layer(x)


@pytest.mark.parametrize("preset", ["retrieval", "digits", "mnist-paper"])
def test_a_preset_trains_resumes_reads_and_writes_on_cuda(preset, tmp_path):
    config = PRESETS[preset]()
    data = data_config(name="digits", seq_len=63) if preset == "mnist-paper" else config.data
    parts = {name: dataclasses.replace(getattr(config, name), batch_size=4, seq_len=None) for name in config.phases}
    if preset == "mnist-paper":
        parts["dmt"] = dataclasses.replace(parts["dmt"], horizon=32, horizon_growth=0.0)
        parts["memory"] = dataclasses.replace(config.memory, tokens=4, width=32)
        small = {"width": 32, "heads": 2, "layers": 2}
        parts["teacher"] = dataclasses.replace(config.teacher, **small, decoder_layers=1, future_len=8, context_len=16)
        parts["cell"] = dataclasses.replace(config.cell, **small)
    if preset == "retrieval":  # most pieces are asked nothing
        parts["smt"] = dataclasses.replace(parts["smt"], num_chunks=8)
    config = dataclasses.replace(
        config, data=data, budget="4steps", device="cuda", precision="auto", tracker=None,
        validation_sequences=8, validate_every="1steps", **parts,
    )  # fmt: skip
    out = tmp_path / "run"
    summary = train(config, out, progress_bar=False)
    assert summary["device"].startswith("cuda")
    assert (summary["precision"] == "bf16") == torch.cuda.is_bf16_supported(including_emulation=False)
    (out / "manifest.json").unlink()  # as if it had been killed before it was exported
    again = train(config, out, resume=True, progress_bar=False)
    assert again["steps"] == summary["steps"] == sum(budget.amount for budget in config.budgets())
    logged = torch.tensor(losses(out))
    assert logged.isfinite().all() and len(logged) == summary["steps"]
    run = load_run(out, teacher=True, device="cuda")
    result = evaluate(run.rnn, run.teacher, load_data(data).windows("test", 8, 8))
    on_cpu = load_run(out, teacher=True)
    there = evaluate(on_cpu.rnn, on_cpu.teacher, load_data(data).windows("test", 8, 8))
    assert abs(result["bits_per_token"] - there["bits_per_token"]) < 0.02
    tokens = torch.stack(list(generate(run.rnn, torch.zeros(3, 0, dtype=torch.long), 5)), 1)
    assert tokens.shape == (3, 5) and tokens.device.type == "cuda"


WITH = {
    "transformer": {"teacher__encoder": "window", "smt__on_policy": 0.0, "memory__norm": "rms"},
    "mlp": {"teacher__encoder": "register", "smt__on_policy": 0.0, "memory__norm": "rms"},
    "gated": {
        "smt__num_chunks": 2,
        "optimizer__gradient_accumulation_steps": 2,
    },
    "gru": {"memory__norm": "rms", "smt__bptt_window": 1},
    "lstm": {"smt__lambda_distill": 1.0, "dmt__lambda_distill": 1.0},
}
"""What else is tried with a cell: every encoder, and what objectives can do.

A residual cell on unbounded memory runs away in DMT's first steps, where a weight that differs in its sixth digit makes
a loss that is 6 % off: those get `rms`.
"""


@pytest.mark.parametrize("cell", CELLS)
def test_in_float32_it_trains_as_on_the_cpu_and_in_bfloat16_nearly(cell, tmp_path):
    memory = {"memory__tokens": 4, "memory__width": 16, "memory__norm": "batch"}
    changes = memory | {"cell__kind": cell, "smt__bptt_window": 3, "dmt__bptt_window": 3} | WITH.get(cell, {})
    config = tiny(phases=("smt", "dmt", "bptt"), budget="6steps", **changes)
    train(config, tmp_path / "cpu", progress_bar=False)
    exact = torch.tensor(losses(tmp_path / "cpu"))
    for precision, apart, compared in (("fp32", 1e-4, 6), ("bf16", 0.1, 2)):  # roundings add up from step to step
        there = dataclasses.replace(config, device="cuda", precision=precision)
        train(there, tmp_path / precision, progress_bar=False)
        found = torch.tensor(losses(tmp_path / precision))
        assert found.isfinite().all()
        torch.testing.assert_close(found[:compared], exact[:compared], rtol=apart, atol=apart)


def near(found, wanted, bf16):
    """Up to rounding: in bfloat16 two gradients of one weight may be added before they are cast, or after."""
    for x, y in zip(found, wanted, strict=True):
        assert (x.float() - y.float()).norm() <= (0.03 if bf16 else 1e-5) * y.float().norm() + 1e-7


@pytest.mark.real_gpu
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("norm", ["batch", "rms"])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_replayed_is_what_is_launched(cell, norm, bf16):
    """Values and gradients of BPTT, whole and cut, and a rollout without a gradient.

    With other tokens and weights than were captured, and where two rollouts wait for their gradient.
    """
    forget()
    _, rnn = (m.float().to("cuda:0") for m in models(cell=cell, norm=norm, layers=1))
    objectives = [BPTT(rnn, truncate) for truncate in (None, 4)]

    def of(turn):
        found, there = [], {name: x.to("cuda:0") for name, x in batch(4, 40, seed=turn).items()}
        for objective in objectives:
            rnn.zero_grad()
            torch.manual_seed(0)  # where it is cut
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                loss = objective(there)["loss"] + objective(there | {"tokens": there["tokens"].flip(1)})["loss"]
            loss.backward()
            found += [loss.detach(), *(p.grad.clone() for p in rnn.parameters())]
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            found.append(rnn.rollout(there["tokens"], rnn.init_memory(4)))
        return found

    for turn in range(4):
        with torch.no_grad():
            for p in rnn.parameters():
                p.mul_(0.9)
        replayed = of(turn)
        with launched():
            near(replayed, of(turn), bf16)
    if cell not in ("gru", "elman"):  # cuDNN runs those
        own = {"gated": gated_rollout, "delta": delta_rollout}.get(cell) if norm == "batch" else None
        for replayed in (own.replayed_forward, own.replayed_backward) if own else (_GRAPHS[rnn],):
            assert replayed.idle and not replayed.refused, "else launches were compared with launches"


@pytest.mark.real_gpu
@pytest.mark.parametrize("encoder", ["window", "register", "state"])
def test_parts_that_are_replayed_are_those_that_are_launched(encoder):
    forget()
    teacher, rnn = (m.float().to("cuda:0") for m in models(encoder, cell="gated", layers=1))
    smt = SMT(teacher, rnn, smt_config(bptt_window=4, on_policy=0.5, decodes_per_sequence=2), 2)

    def of(turn):
        smt.zero_grad()
        torch.manual_seed(turn % 2)
        there = batch(4, 16, seed=turn) | {"targets": batch(4, 16)["targets"]}  # as many of them each time
        losses = smt({name: x.to("cuda:0") for name, x in there.items()})
        losses["loss"].backward()
        return [*losses.values(), *(p.grad for p in smt.parameters() if p.grad is not None)]

    with using(fast_parts(rnn, teacher)):
        for turn in range(6):
            statistics = copy.deepcopy(teacher.norm.state_dict())
            replayed = [x.detach().clone() for x in of(turn)]
            teacher.norm.load_state_dict(statistics)
            with launched():
                near(replayed, of(turn), bf16=False)
        captured = [r.module() for r in _ALL if r.module and r.idle]
        assert all(part in captured for part in (teacher.encoder, teacher.decoder, rnn.readout))


@pytest.mark.parametrize("encoder", ["window", "register", "state"])
@pytest.mark.parametrize("phase", ["smt", "dmt", "dmt alone", "bptt"])
@pytest.mark.parametrize("data", [batch(4), padded()], ids=["whole", "padded"])
def test_a_step_waits_for_the_device_once_at_most(encoder, phase, data):
    teacher, rnn = (m.float().to("cuda:0") for m in models(encoder, cell="gated"))
    make = {
        "smt": lambda: SMT(teacher, rnn, smt_config(bptt_window=2, on_policy=0.5, decodes_per_sequence=2), 2),
        "dmt": lambda: DMT(teacher, rnn, DMTConfig(horizon=2, horizon_growth=0.0, bptt_window=2, lambda_distill=1.0)),
        "dmt alone": lambda: DMT(teacher, rnn, DMTConfig(horizon_growth=0.0, bptt_window=2)),
        "bptt": lambda: BPTT(rnn, 2),
    }
    objective = make[phase]()
    there = {name: x.to("cuda:0") for name, x in data.items()}
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        objective(there)["loss"].backward()
    torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    assert len(waits) <= 1, waits  # for how many targets count


def test_a_step_that_is_not_logged_fetches_no_losses(tmp_path, monkeypatch):
    waits = []

    def watched(*args):
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return take_step(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                waits.append(sum("synchroniz" in str(warning.message) for warning in caught))

    monkeypatch.setattr("retain.training.loop.take_step", watched)
    monkeypatch.setattr("retain.training.losses_log.EACH", 0)
    monkeypatch.setattr("retain.training.losses_log.THEN", 4)
    train(tiny(device="cuda", phases=("smt",), budget="8steps"), tmp_path / "run", progress_bar=False)
    for number, count in enumerate(waits):  # one wait is for how many targets count
        assert count == 1 if number % 4 else count > 1, waits


class Launches(TorchDispatchMode):
    """Counts the operations on CUDA that are more than a view: a kernel or a few each."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        first = next((x for x in tree_leaves(out) if isinstance(x, torch.Tensor)), None)
        self.count += first is not None and first.is_cuda and not func.is_view
        return out


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
def test_pytorchs_own_cells_remember_in_float32(cell):
    _, rnn = (m.float().to("cuda:0") for m in models(cell=cell))
    tokens = batch(4)["tokens"].to("cuda:0")
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        stepped = rnn.step(tokens[:, 0], rnn.init_memory(4))[1]
        rolled = rnn.rollout(tokens, rnn.init_memory(4))[:, -1]
    for memory in (stepped, rolled):
        assert memory.dtype == torch.float32
        assert (memory != memory.bfloat16().float()).any(), "not rounded to bfloat16"


def test_what_smt_launches_does_not_grow_with_the_sequence_and_bptt_does():
    def launched(objective, length):
        there = {name: x.to("cuda:0") for name, x in batch(4, length).items()}
        with Launches() as counted:
            objective(there)["loss"].backward()
        return counted.count

    teacher, rnn = (m.float().to("cuda:0") for m in models(cell="gated"))
    smt = SMT(teacher, rnn, smt_config(bptt_window=4, on_policy=0.5, decodes_per_sequence=2), 2)
    assert launched(smt, 64) < 1.2 * launched(smt, 16)  # up to what a random offset of the stretches makes of it
    bptt = BPTT(rnn, None)
    assert launched(bptt, 64) > 3 * launched(bptt, 16)


@pytest.mark.parametrize("kind", ["all", "causal", "mask of all", "mask of each", "mask of all, causal"])
@pytest.mark.parametrize("few", [False, True])
def test_many_sequences_attend_some_at_a_time_and_few_keys_in_products(few, kind, monkeypatch):
    monkeypatch.setattr("retain.ops.attention.FUSED_BATCH", 2)
    monkeypatch.setattr("retain.ops.attention.MANY_SEQUENCES", 1 if few else 2**14)
    q, k, v = (torch.randn(5, 2, 3, 4) for _ in range(3))
    mask = torch.rand(*([5, 1] if kind == "mask of each" else []), 3, 3) < 0.5
    mask[..., 0] = True
    settings = {"causal": kind.endswith("causal"), "mask": mask if kind.startswith("mask") else None}
    there = settings | {"mask": settings["mask"].to("cuda:0") if settings["mask"] is not None else None}
    calls, plain = [], attending.plain_attention
    monkeypatch.setattr(attending, "plain_attention", lambda *a, **k: calls.append(1) or plain(*a, **k))
    monkeypatch.setattr(torch.version, "cuda", "13")  # a pretended device has none
    found = attending.attention(*(part.to("cuda:0") for part in (q, k, v)), **there)
    assert bool(calls) == few
    torch.testing.assert_close(found.cpu(), naive_attention(q, k, v, **settings))


@pytest.mark.real_gpu
@pytest.mark.parametrize("cell", CELLS)
def test_the_fast_step_is_the_step(cell):
    _, rnn = (m.float().to("cuda:0").eval() for m in models(cell=cell))
    step, tokens = fast_step(rnn, 3), batch(3, 5)["tokens"].to("cuda:0")
    fast = slow = rnn.init_memory(3)
    kept = []
    for token in tokens.unbind(1):
        with torch.no_grad():
            wanted, slow = rnn.step(token, slow)
        logits, fast = step(token, fast)
        kept.append((logits, wanted))
    for logits, wanted in kept:  # what a step gave is not written over by the next
        assert (logits.float() - wanted).norm() < 0.1 * wanted.norm()


def test_the_command_line_evaluates_and_writes_on_cuda(tmp_path, capsys):
    out = str(tmp_path / "run")
    train(tiny(device="cuda"), out, progress_bar=False)
    capsys.readouterr()
    main(["eval", out, "--device", "cuda", "--json"])
    on_cuda = json.loads(capsys.readouterr().out)["bits_per_token"]
    main(["eval", out, "--device", "cpu", "--json"])
    assert abs(json.loads(capsys.readouterr().out)["bits_per_token"] - on_cuda) < 1e-3
    main(["generate", out, "--device", "cuda", "--length", "5"])
    assert len(capsys.readouterr().out.split()) == 5


def test_streams_of_a_server_say_on_cuda_what_they_say_on_the_cpu():
    rnn = build(tiny(), 256)[0].double().eval().requires_grad_(False)
    said, memories = [], []
    for device in ("cpu", "cuda:0"):
        batch, streams = Batch(rnn.to(device)), []
        for prompt, temperature in ([], 0.0), ([1, 2], 1.0), ([3] * 2 * AHEAD, 0.7):
            reader = Bytes()
            sampling = Sampling(temperature, 0.9, torch.Generator().manual_seed(1))
            streams.append(Stream(prompt, 9, sampling, reader, Text(reader.read, reader.rest, (), None), kept=True))
        batch.add(streams)
        news = []
        while batch.streams:
            news += batch.step()
        said.append(["".join(piece.text for piece in news if piece.stream is stream) for stream in streams])
        memories.append(torch.stack([stream.memory.cpu() for stream in streams]))
        again = Stream([], 0, sampling, reader, streams[0].text, memories[0][0], kept=True)
        batch.add([again])
        batch.step()
        assert torch.equal(again.memory.cpu(), memories[0][0])
    assert said[0] == said[1]
    torch.testing.assert_close(memories[0], memories[1])


def test_a_frozen_trunk_and_its_labels_train_on_cuda(tmp_path):
    config = tiny(data=data_config(name="digits", seq_len=63), device="cuda", budget="4steps", smt__lambda_distill=0.5)
    train(config, tmp_path / "source", progress_bar=False)
    live = with_source(config, str(tmp_path / "source"))
    train(live, tmp_path / "live", progress_bar=False)
    make_labels(live, tmp_path / "labels", progress_bar=False)
    train(with_labels_of(config, tmp_path / "labels", None), tmp_path / "kept", progress_bar=False)
    before, after = (torch.tensor(losses(tmp_path / name)) for name in ("live", "kept"))
    assert len(before) == 4
    torch.testing.assert_close(before, after, rtol=0.05, atol=0.05)
