"""A causal language model as the teacher's frozen trunk: what is read of it, and what a run of it is."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

transformers = pytest.importorskip("transformers")

from test_train_processes import two_workers  # noqa: E402

import language_models as made  # noqa: E402
from conftest import checkpoints_every, tiny, train_tiny  # noqa: E402
from retain.config import DocumentDataConfig  # noqa: E402
from retain.config.json import save_config  # noqa: E402
from retain.data import load_data  # noqa: E402
from retain.errors import UserError  # noqa: E402
from retain.model.given import compress, expand  # noqa: E402
from retain.objectives.losses import kept_labels, predictive_loss, softened_cross_entropy  # noqa: E402
from retain.report.verdict import describe_run  # noqa: E402
from retain.runs.checkpoint import load_files  # noqa: E402
from retain.runs.run import build, load_run  # noqa: E402
from retain.runs.trunk import basis_of, for_teacher, open_trunk, start_embeddings, with_source  # noqa: E402
from retain.training.loop import train  # noqa: E402
from retain.training.phases import cut_part, group_by_rate, objective_of  # noqa: E402
from runs import Crash, losses, run  # noqa: E402

MODELS = {"llama": made.llama, "gpt2": made.gpt2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A book, and a language model of each kind."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "book.txt").write_text(made.text(300))
    for name, make in MODELS.items():
        make(folder / name)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def changed(config, **changes):
    """The config with other values: `teacher__layer=1` sets teacher.layer."""
    for name, value in changes.items():
        part, _, field = name.partition("__")
        value = dataclasses.replace(getattr(config, part), **{field: value}) if field else value
        config = dataclasses.replace(config, **{part: value})
    return config


def config(world, model="llama", **changes):
    data = DocumentDataConfig(path=str(world / "book.txt"), tokenizer="that of the model", seq_len=made.SEQ_LEN)
    both = {"smt__lambda_distill": 0.5, "dmt__lambda_distill": 0.5}
    return changed(with_source(tiny(data=data, **both), str(world / model)), **changes)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("name", MODELS)
def test_position_t_has_read_t_tokens_after_a_beginning(world, name, layer):
    """Its states and probabilities are those that transformers gives for the text after its symbol of beginning."""
    c = config(world, name, teacher__layer=layer)
    data = load_data(c.data)
    trunk = open_trunk(c, data)
    tokens = next(data.windows("train", 3))["tokens"]
    states, logits = trunk(tokens, True)
    text = data.decode(tokens[1].tolist())
    model = transformers.AutoModelForCausalLM.from_pretrained(world / name).eval()
    subwords = transformers.AutoTokenizer.from_pretrained(world / name)
    start = subwords.bos_token_id if name == "llama" else subwords.eos_token_id
    ids = [start, *subwords(text, add_special_tokens=False).input_ids]
    with torch.no_grad():
        found = model(torch.tensor([ids]), output_hidden_states=True)
    assert states.shape == (3, made.SEQ_LEN + 1, 16) and logits.shape[-1] == data.vocab_size == len(subwords)
    torch.testing.assert_close(states[1], found.hidden_states[-1 if layer is None else layer][0])
    torch.testing.assert_close(logits[1], found.logits[0, :, : data.vocab_size])
    torch.testing.assert_close(trunk(tokens, False)[0], states)
    torch.testing.assert_close(trunk(tokens[:, :0], False)[0], states[:, :1])


def test_the_run_has_no_weight_of_the_model_and_does_without_it(world, tmp_path, retain):
    shutil.copytree(world / "llama", tmp_path / "model")
    c = with_source(config(world), str(tmp_path / "model"))
    train(c, tmp_path / "run", progress_bar=False)
    tensors, state = load_files(tmp_path / "run", ["teacher"])
    assert {name.partition(".")[0] for name in tensors["teacher"]} == {"encoder", "norm", "decoder"}
    assert tensors["teacher"]["encoder.to_memory.weight"].shape == (2 * 8, 16)
    assert state["teacher_from"]["from"] == str(tmp_path / "model") and len(state["teacher_from"]["sha256"]) == 64
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "loss_distill" in records[0] and "loss_trunk" not in records[0]
    assert any("validation_teacher_bits_per_token" in record for record in records)
    shutil.rmtree(tmp_path / "model")
    code, said, warned = retain("eval", tmp_path / "run")
    assert code == 0 and "bits per byte" in said and "teacher" not in said and "is not loaded" in warned
    assert retain("generate", tmp_path / "run", "--prompt", "once", "--length", "5")[0] == 0
    assert retain("info", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("phases", [("smt", "dmt"), ("smt", "bptt")])
def test_a_resumed_run_goes_on_bit_for_bit_and_refuses_another_model(world, tmp_path, phases):
    shutil.copytree(world / "llama", tmp_path / "model")
    c = with_source(config(world, phases=phases, validate_every="4steps"), str(tmp_path / "model"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(c, whole)

    def crash(number):
        if number == 9:
            raise Crash

    with pytest.raises(Crash):
        run(c, cut, crash)
    shutil.copytree(cut, tmp_path / "other")
    run(c, cut, resume=True)
    assert losses(whole) == losses(cut)
    shutil.rmtree(tmp_path / "model")
    made.llama(tmp_path / "model", seed=1)
    with pytest.raises(UserError, match="its weights differ"):
        run(c, tmp_path / "other", resume=True)


@pytest.mark.parametrize("trunk", ["attention", "delta"])
def test_a_run_of_ours_is_a_trunk_too(tmp_path, trunk):
    """Its states are those of its teacher; a layer in the middle has no last norm."""
    source = train_tiny(tmp_path / "source", teacher__layers=2, teacher__trunk=trunk)
    c = with_source(tiny(smt__lambda_distill=0.5), str(source))
    data, teacher = load_data(c.data), load_run(source, teacher=True).teacher
    trunk = open_trunk(c, data)
    tokens = data.batch(0, 0, 0, 3)["tokens"]
    states, logits = trunk(tokens, True)
    memory, own = teacher.encode_with_trunk(tokens)
    torch.testing.assert_close(logits, own)
    torch.testing.assert_close(teacher.norm(teacher.encoder.to_memory(states).unflatten(-1, (2, 8))), memory)
    middle = open_trunk(changed(c, teacher__layer=1), data)(tokens, False)[0]
    last = changed(c, teacher__layer=2)
    torch.testing.assert_close(teacher.encoder.trunk.transformer.norm(open_trunk(last, data)(tokens, False)[0]), states)
    assert not torch.allclose(middle, states)
    train(c, tmp_path / "run", progress_bar=False)
    with pytest.raises(UserError, match=r"takes its trunk from .*source; give that"):
        open_trunk(with_source(tiny(), str(tmp_path / "run")), data)


def test_top_k_keeps_the_probabilities_and_shares_out_the_rest():
    logits = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0)) * 3
    spread = expand(compress(logits, 5), 20).softmax(-1)
    whole, top = logits.softmax(-1), logits.topk(5).indices
    torch.testing.assert_close(spread.gather(-1, top), whole.gather(-1, top))
    torch.testing.assert_close(spread.sum(-1), torch.ones(2, 3))
    rest = spread.scatter(-1, top, -1)
    assert all(len(set(row[row >= 0].tolist())) == 1 for row in rest.flatten(0, 1)), "the rest is even"
    torch.testing.assert_close(expand(compress(logits, 50), 20).softmax(-1), whole)


def test_the_rnn_starts_from_the_embeddings_and_head(world, tmp_path):
    c = config(world, teacher__init_embeddings=True, budget="1steps", phases=("bptt",), memory__width=16)
    train(c, tmp_path / "run", progress_bar=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "llama")
    rnn, size = load_run(tmp_path / "run").rnn, load_data(c.data).vocab_size
    for mine, theirs in ((rnn.embed, model.get_input_embeddings()), (rnn.readout.head, model.get_output_embeddings())):
        mine, theirs = mine.weight.detach(), theirs.weight.detach()[:size]
        alike = torch.cosine_similarity(mine, theirs, dim=1)
        assert alike.min() > 0.95, "one step of a small rate is all that lies between"


def test_rows_keep_their_distances_as_well_as_a_narrower_width_can():
    draws = torch.Generator().manual_seed(0)
    table = torch.randn(50, 3, generator=draws).double() @ torch.randn(3, 16, generator=draws).double() + 5
    narrow = table @ basis_of(table, 4)
    torch.testing.assert_close(torch.cdist(narrow, narrow), torch.cdist(table, table), atol=1e-5, rtol=1e-5)
    assert basis_of(table, 20).equal(torch.eye(16).double())


@pytest.mark.parametrize("norm", ["batch", "rms"])
@pytest.mark.parametrize(("name", "width"), [("llama", 16), ("llama", 24), ("gpt2", 16)])
def test_the_decoder_starts_with_the_predictions_of_the_model(world, name, width, norm):
    c = config(world, name, memory__norm=norm, memory__width=width, teacher__width=width, teacher__heads=4)
    data = load_data(c.data)
    trunk = open_trunk(c, data)
    assert trunk.width == 16
    rnn, teacher = build(c, data.vocab_size, None, trunk)
    start_embeddings(c, trunk, rnn, teacher, data)
    tokens = for_teacher(c, data).batch(0, 0, 0, 16)["tokens"]  # those that the scale was taken from
    memory, logits = teacher.encode_with_trunk(tokens, whole=True)
    wanted = logits.log_softmax(-1)
    for readout in (teacher.decoder, rnn.readout):
        torch.testing.assert_close(readout(memory).log_softmax(-1), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_a_pruned_vocabulary_reads_the_training_text_alike_and_any_text_at_all(world, model, tmp_path):
    whole = config(world, model)
    pruned = config(world, model, data__prune_vocab=True)
    before, after = load_data(whole.data), load_data(pruned.data)
    assert 256 < after.vocab_size < before.vocab_size
    for split in ("train", "validation"):
        old, new = before.splits[split], after.splits[split]
        assert len(old) == len(new) and before.decode(old[:200].tolist()) == after.decode(new[:200].tolist())
    text = "naïve unheard of words …"
    assert after.decode(after.encode(text)) == text and len(after.encode(text)) > len(before.encode(text))
    assert after.bytes_per_token == before.bytes_per_token
    # The model reads the same symbols by other numbers.
    (states, logits), (same, part) = (
        open_trunk(c, data)(data.sequences("train", np.arange(3))["tokens"], True)
        for c, data in ((whole, before), (pruned, after))
    )
    torch.testing.assert_close(states, same)
    theirs, mine = transformers.AutoTokenizer.from_pretrained(world / model).get_vocab(), json.loads(after.tokenizer)
    names = {number: name for name, number in mine["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in mine["added_tokens"]}
    index = [theirs[names[number]] for number in range(after.vocab_size)]
    torch.testing.assert_close(part, logits[..., index])
    # The run keeps it, and other text is read by it.
    train(pruned, tmp_path / "run", progress_bar=False)
    assert (tmp_path / "run" / "tokenizer.json").read_text() == after.tokenizer
    assert load_data(load_run(tmp_path / "run").config.data).vocab_size == after.vocab_size


@pytest.fixture(scope="module")
def lm_run(world, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        train(config(world), world / "run", progress_bar=False)
    return world / "run"


def test_dmt_goes_on_from_a_run_with_the_same_model_alone(world, lm_run, tmp_path):
    more = {"init_from": str(lm_run), "phases": ("dmt",), "budget": "2steps"}
    train(config(world, **more), tmp_path / "more", progress_bar=False)
    before, after = (load_files(path, ["teacher"])[0]["teacher"] for path in (lm_run, tmp_path / "more"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for other, message in (
        (config(world, "gpt2", **more), r"has teacher.from .*llama and this run .*gpt2; give --teacher.from .*llama"),
        (config(world, teacher__layer=1, **more), "has teacher.layer None and this run 1"),
    ):
        with pytest.raises(UserError, match=message):
            train(other, tmp_path / "other", progress_bar=False)


def test_the_run_is_reported_and_exported_like_any_other(lm_run, tmp_path, retain):
    """Its tokens end with the model's own symbol."""
    code, said, _ = retain("info", lm_run)
    assert code == 0 and "llama, frozen" in said
    assert retain("report", lm_run, "--out", tmp_path / "report.html")[0] == 0
    (reported,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert not [note for note in reported["notes"] if "failed" in note], reported["notes"]
    assert "which is not loaded, so there is no drift to measure" in describe_run(reported)
    assert retain("export", lm_run, tmp_path / "hf", "--to", "hf")[0] == 0
    subwords = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    data = load_data(load_run(lm_run).config.data)
    assert (subwords.eos_token, subwords.eos_token_id) == ("</s>", data.end)
    assert subwords("once there was").input_ids == data.encode("once there was")


def naive_softened(log_probabilities, teacher_logits, k, temperature):
    """By hand, a token at a time: k known tokens and one outcome for all others."""
    total = []
    for mine, guide in zip(log_probabilities.exp(), teacher_logits.softmax(-1), strict=True):
        known = guide.topk(k).indices.tolist()
        others = [i for i in range(len(guide)) if i not in known]

        def soften(p, known=known, others=others):
            outcomes = torch.stack([*(p[i] for i in known), sum(p[i] for i in others)])
            return outcomes ** (1 / temperature) / (outcomes ** (1 / temperature)).sum()

        cost = -sum(q * p.log() for q, p in zip(soften(guide), soften(mine), strict=True)) * temperature**2
        rest, own = (sum(p[i] for i in others) for p in (guide, mine))
        total.append(cost - rest * sum((mine[i] / own).log() for i in others) / len(others))
    return torch.stack(total)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_softened_distillation_counts_the_rest_as_one_outcome(temperature):
    """Values and gradients of the slow twin; at 1 the plain cross-entropy; least where the RNN is as the teacher."""
    draws = torch.Generator().manual_seed(0)
    whole = torch.randn(5, 20, generator=draws).double() * 3
    guide = expand(compress(whole, 4), 20).double()
    logits = torch.randn(5, 20, generator=draws).double().requires_grad_()
    fast = softened_cross_entropy(logits.log_softmax(-1), guide, temperature)
    slow = naive_softened(logits.log_softmax(-1), guide, 4, temperature)
    torch.testing.assert_close(fast, slow)
    weights = torch.randn(5, generator=draws).double()
    (mine,), (theirs,) = (torch.autograd.grad((loss * weights).sum(), logits) for loss in (fast, slow))
    torch.testing.assert_close(mine, theirs)
    if temperature == 1:
        torch.testing.assert_close(fast, -(guide.softmax(-1) * logits.log_softmax(-1)).sum(-1))
    best = guide.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(softened_cross_entropy(best.log_softmax(-1), guide, temperature).sum(), best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bptt_learns_the_models_probabilities_if_it_is_to(world, tmp_path, temperature):
    plain = config(world, phases=("bptt",), budget="4steps")
    train(plain, tmp_path / "plain", progress_bar=False)
    own = changed(plain, bptt__lambda_distill=2.0, teacher__temperature=temperature)
    train(own, tmp_path / "own", progress_bar=False)
    first, other = (json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[0]) for n in ("plain", "own"))
    assert "loss_distill" not in first and first["loss"] == first["loss_readout"]
    assert other["loss"] == pytest.approx(other["loss_readout"] + 2.0 * other["loss_distill"], rel=1e-5)


def test_bptt_alone_reads_no_model_and_all_windows(world, tmp_path):
    """Its windows start anywhere, as no label is kept for them."""
    data = load_data(config(world).data)
    assert for_teacher(config(world, phases=("bptt",)), data) is data and not data.aligned
    assert for_teacher(config(world, phases=("bptt",), bptt__lambda_distill=1.0), data).aligned


def test_bptt_after_smt_goes_on_from_the_teachers_memory(world):
    """Where a document does not begin; else from m_0, as without a teacher."""
    c = config(world, teacher__context_before=30, phases=("smt", "bptt"))
    data = for_teacher(c, load_data(c.data))
    rnn, teacher = build(c, data.vocab_size, trunk=open_trunk(c, data))
    objective = objective_of(1, c, rnn, teacher)
    batch = data.sequences("train", np.array([0, 1, 7]))
    assert batch["fresh"].tolist() == [True, False, False]
    labels = teacher.eval().encode(batch["tokens"], kept=kept_labels(batch))
    assert not torch.allclose(labels[1, 0], labels[2, 0])
    torch.testing.assert_close(labels[0, 0], teacher.empty_memory())
    start = torch.stack([rnn.m_0, labels[1, 0], labels[2, 0]])
    read = torch.cat([start[:, None], rnn.rollout(batch["tokens"], start)], 1)
    expected = predictive_loss(rnn.readout(read), batch["targets"])
    torch.manual_seed(0)
    window = dataclasses.replace(c.bptt, bptt_window=None)
    objective = objective_of(1, changed(c, bptt=window), rnn, teacher)
    torch.testing.assert_close(objective(batch)["loss"], expected)


def test_a_part_of_a_sequence_is_read_after_what_lies_before_it(world):
    c = config(world, teacher__context_before=30)
    data = for_teacher(c, load_data(c.data))
    trunk, batch = open_trunk(c, data), data.sequences("train", np.array([0, 1, 7, 8]))
    whole, _ = trunk(batch["tokens"], False, kept_labels(batch))
    torch.manual_seed(3)
    part = cut_part(batch, 5)
    start = next(i for i in range(8) if torch.equal(batch["tokens"][:, i : i + 5], part["tokens"]))
    assert start and not part["fresh"].any()
    states, logits = trunk(part["tokens"], True, kept_labels(part))
    torch.testing.assert_close(states, whole[:, start : start + 6])
    assert logits.shape[:2] == (4, 6)


@pytest.fixture(scope="module")
def trained_trunk(world, tmp_path_factory):
    """A run that trains its trunk, of two layers and a head that is not tied, and its config."""
    c = config(world, teacher__trunk_lr=0.01, teacher__context_before=20, validate_every="4steps")
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run(c, folder)
    return c, folder


def test_a_trunk_is_trained_in_smt_alone_and_kept_with_the_run(world, trained_trunk):
    folder = trained_trunk[1]
    before = transformers.AutoModelForCausalLM.from_pretrained(world / "llama").state_dict()
    after = {p.name: load_files(p, ["teacher"])[0]["teacher"] for p in sorted((folder / "phases").iterdir())}
    smt, dmt = ({k: v for k, v in t.items() if k.startswith("trunk.")} for t in after.values())
    assert smt.keys() == dmt.keys() and all(torch.equal(smt[name], dmt[name]) for name in smt)
    moved = {name for name, value in before.items() if not torch.equal(value, smt[f"trunk.model.{name}"])}
    assert moved == set(before), "loss_trunk reaches the head, too"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "loss_trunk" in records[0]


def test_a_resumed_run_with_a_trained_trunk_goes_on_bit_for_bit(trained_trunk, tmp_path):
    c, folder = trained_trunk
    for stop in (4, 9):  # in SMT and in DMT
        cut = tmp_path / f"cut{stop}"

        def crash(number, stop=stop):
            if number == stop:
                raise Crash

        with checkpoints_every("3steps"), pytest.raises(Crash):
            run(c, cut, crash)
        run(c, cut, resume=True)
        assert losses(folder) == losses(cut)
        whole, again = (load_files(path, ["teacher"])[0]["teacher"] for path in (folder, cut))
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_dmt_goes_on_from_a_run_with_a_trained_trunk(trained_trunk, tmp_path):
    c, folder = trained_trunk
    more = changed(c, init_from=str(folder), phases=("dmt",), budget="2steps")
    train(more, tmp_path / "more", progress_bar=False)
    before, after = (load_files(path, ["teacher"])[0]["teacher"] for path in (folder, tmp_path / "more"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match=r"teacher.trunk_lr 0.01 and this run None; give --teacher.trunk-lr 0.01"):
        train(changed(more, teacher__trunk_lr=None), tmp_path / "other", progress_bar=False)


def test_the_trained_trunk_is_scored_and_told_of(world, trained_trunk, retain):
    """As the run left it, not as it was."""
    _, folder = trained_trunk
    assert "llama, trained in SMT" in retain("info", folder)[1]
    code, said, _ = retain("eval", folder, "--teacher.from", world / "llama", "--split", "validation", "--json")
    assert code == 0
    found, run = json.loads(said), load_run(folder)
    data = for_teacher(run.config, load_data(run.config.data))
    trunk = open_trunk(run.config, data)
    batches = list(data.windows("validation", 64))
    before, after = [], []
    tensors = load_files(folder, ["teacher"])[0]["teacher"]
    weights = {name.removeprefix("trunk."): x for name, x in tensors.items() if name.startswith("trunk.")}
    for scores in (before, after):
        for batch in batches:
            logits = trunk(batch["tokens"], True, kept_labels(batch))[1].detach()
            scores.append(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
            )
        trunk.load_state_dict(weights)
    bits = sum(after).item() / found["tokens"] / torch.log(torch.tensor(2.0)).item()
    assert found["model_bits_per_token"] == pytest.approx(bits, rel=1e-4)
    assert sum(after) < sum(before), "it has learnt"


@pytest.mark.parametrize(("name", "layer"), [("llama", 1), ("gpt2", None)])
def test_the_trunk_has_a_rate_of_its_own_and_is_frozen_where_nothing_reaches_it(world, name, layer):
    c = config(world, name, teacher__trunk_lr=1e-6, teacher__layer=layer, smt__lambda_trunk=0.0, smt__lr=0.01)
    data = for_teacher(c, load_data(c.data))
    rnn, teacher = build(c, data.vocab_size, trunk=open_trunk(c, data))
    objective = objective_of(0, c, rnn, teacher)
    batch = data.batch(0, 0, 0, 4)
    objective(batch)["loss"].backward()
    trained = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    assert all(p.grad is not None for _, p in trained), "DDP refuses a weight that no gradient reaches"
    of_trunk = [n for n, _ in trained if n.startswith("teacher.trunk.")]
    assert of_trunk and not any("lm_head" in n or "layers.1" in n for n in of_trunk)
    job = SimpleNamespace(teacher=teacher, config=c, phase_name=lambda: "smt")
    own, others = group_by_rate(trained, job)[::-1]
    assert len(own["params"]) == len(of_trunk) and own["scale"] == pytest.approx(1e-4) and others["scale"] == 1.0
    assert not any(part.training for part in teacher.trunk.modules()), "no dropout"


@pytest.mark.parametrize("phases", [("smt", "dmt"), ("bptt",)])
def test_frozen_embeddings_stay_those_of_the_model(world, tmp_path, phases):
    c = config(world, teacher__init_embeddings=True, teacher__freeze_embeddings=True, phases=phases, memory__width=16)
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "llama")
    for freeze in (True, False):
        train(changed(c, teacher__freeze_embeddings=freeze), tmp_path / str(freeze), progress_bar=False)
        rnn = load_run(tmp_path / str(freeze)).rnn
        pairs = ((rnn.embed, model.get_input_embeddings()), (rnn.readout.head, model.get_output_embeddings()))
        for mine, theirs in pairs:
            mine, theirs = mine.weight.detach(), theirs.weight.detach()[: rnn.vocab_size]
            scale = (mine.square().sum() / theirs.square().sum()).sqrt()
            assert torch.allclose(mine, theirs * scale, atol=1e-6) == freeze


def test_without_a_loss_of_its_own_the_teacher_stays_as_it_starts(world, tmp_path):
    """Its map would otherwise follow what f predicts. A trained model still gets gradients from f."""
    c = config(world, teacher__init_embeddings=True, smt__lambda_dec=0.0, phases=("smt",), memory__width=16)
    for name, changes in (("long", {"budget": "12steps"}), ("short", {"budget": "1steps"})):
        train(changed(c, **changes), tmp_path / name, progress_bar=False)
    long, short = (load_file(tmp_path / name / "teacher.safetensors") for name in ("long", "short"))
    differ = {name.split(".")[0] for name in long if not long[name].equal(short[name])}
    assert differ == {"norm"}, "only the statistics of its memories"
    data, trained = load_data(c.data), changed(c, teacher__trunk_lr=1e-3)
    rnn, teacher = build(trained, data.vocab_size, None, open_trunk(trained, data))
    objective_of(0, trained, rnn, teacher)
    assert teacher.encoder.to_memory.weight.requires_grad and not teacher.decoder.head.weight.requires_grad


BAD_SETTINGS = [
    ("llama", {"teacher__freeze_embeddings": True}, "teacher.freeze_embeddings: they would stay random"),
    (None, {"teacher__temperature": 2.0}, "teacher.temperature: 2.0 needs teacher.from"),
    (None, {"bptt__lambda_distill": 1.0, "phases": ("bptt",)}, "bptt.lambda_distill: 1.0 needs a language model"),
]


@pytest.mark.parametrize(("model", "changes", "message"), BAD_SETTINGS)
def test_settings_that_say_nothing_are_refused(world, model, changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**changes) if model is None else config(world, model, **changes)


def test_a_context_is_refused_where_there_is_none_or_the_model_is_too_short(world):
    with pytest.raises(UserError, match=r"teacher.context_before: 111 tokens and a start token are above the 80"):
        long = config(world, teacher__context_before=60)
        open_trunk(long, load_data(long.data))
    source = config(world, teacher__context_before=20)
    with pytest.raises(UserError, match="no sequence of retrieval has 20 tokens before it"):
        for_teacher(changed(source, data=tiny().data), load_data(tiny().data))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_train_one_trunk(world, tmp_path, name):
    """Every weight that they train has a gradient in both, as DDP wants; tied ones count once."""
    c = config(world, name, teacher__trunk_lr=0.01, phases=("smt", "dmt", "bptt"), bptt__lambda_distill=1.0)
    save_config(changed(c, budget="6steps"), tmp_path / "config.json")
    for worker in two_workers(tmp_path / "config.json", tmp_path / "run"):
        said, _ = worker.communicate()
        assert worker.returncode == 0, said
    assert len(losses(tmp_path / "run")) == 6
