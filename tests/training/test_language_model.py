"""A causal language model as the teacher's frozen trunk: what is read of it, and what a run of it is."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

import language_models as made  # noqa: E402
from conftest import tiny, train_tiny  # noqa: E402
from retain.config import DocumentDataConfig  # noqa: E402
from retain.data import load_data  # noqa: E402
from retain.errors import UserError  # noqa: E402
from retain.model.frozen import compress, expand  # noqa: E402
from retain.report.verdict import describe_run  # noqa: E402
from retain.runs.checkpoint import load_files  # noqa: E402
from retain.runs.run import load_run  # noqa: E402
from retain.runs.trunk import map_to_width, open_trunk, with_source  # noqa: E402
from retain.training.loop import train  # noqa: E402
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
    with pytest.raises(UserError, match=r"has it from .*source; give that"):
        open_trunk(with_source(tiny(), str(tmp_path / "run")), data)


def test_top_k_keeps_the_probabilities_and_shares_out_the_rest():
    logits = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0)) * 3
    spread = expand(compress(torch.zeros(2, 3, 4), logits, 5), 20).softmax(-1)
    whole, top = logits.softmax(-1), logits.topk(5).indices
    torch.testing.assert_close(spread.gather(-1, top), whole.gather(-1, top))
    torch.testing.assert_close(spread.sum(-1), torch.ones(2, 3))
    rest = spread.scatter(-1, top, -1)
    assert all(len(set(row[row >= 0].tolist())) == 1 for row in rest.flatten(0, 1)), "the rest is even"
    torch.testing.assert_close(expand(compress(torch.zeros(2, 3, 4), logits, 50), 20).softmax(-1), whole)


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
    narrow = map_to_width(table, 4)
    torch.testing.assert_close(torch.cdist(narrow, narrow), torch.cdist(table, table), atol=1e-5, rtol=1e-5)
    assert map_to_width(table, 20) is table


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
