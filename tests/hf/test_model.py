"""The model of transformers reads as the RNN does: whole, in parts, padded, and from a memory that was saved."""

import json
import os
import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

import retain
from conftest import tiny, train_tiny
from retain.config import CellConfig, MemoryConfig, data_config
from retain.errors import UserError
from retain.runs.run import load, load_run
from runs import OWN_CELL

transformers = pytest.importorskip("transformers", reason="needs transformers, of retain[hf]")

from retain.hf import RetainConfig, RetainForCausalLM, export_hf  # noqa: E402

CELLS = {
    "transformer": {"memory__norm": "rms"},
    "gated": {},
    "gru": {"memory__norm": "fsq"},
    "delta": {"memory": MemoryConfig(tokens=3, width=16)},
    "lstm": {},
    "owncell:Cell": {},
}


@pytest.mark.parametrize("kind", CELLS)
def test_logits_are_those_of_the_rnn_over_a_thousand_tokens(kind, tmp_path, monkeypatch):
    (tmp_path / "owncell.py").write_text(OWN_CELL)
    monkeypatch.syspath_prepend(tmp_path)
    cell = CellConfig(kind=kind, width=16, heads=2)
    train_tiny(tmp_path / "run", cell=cell, phases=("bptt",), budget="2steps", **CELLS[kind])
    with torch.no_grad():
        export_hf(load_run(tmp_path / "run"), tmp_path / "hf")
        model, rnn = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), load(tmp_path / "run")
        sys.modules.pop("owncell", None)
        # Trained for two steps the delta cell is chaotic: what float32 rounds off grows a million times.
        compare(model, rnn, 100 if kind == "delta" else 1000, atol=1e-5)
        compare(model.double(), rnn.double(), 1000, atol=1e-7)


def test_a_folder_from_before_the_delta_cell_named_its_addresses_is_read(tmp_path):
    cell, memory = CellConfig(kind="delta", width=16, addresses="memory"), MemoryConfig(tokens=3, width=16)
    train_tiny(tmp_path / "run", cell=cell, memory=memory, phases=("bptt",), budget="2steps")
    export_hf(load_run(tmp_path / "run"), tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    del config["cell"]["addresses"]
    path.write_text(json.dumps(config))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        compare(model.double(), load(tmp_path / "run").double(), 100, atol=1e-7)


def compare(model, rnn, length, atol):
    tokens = torch.randint(rnn.vocab_size, (2, length))
    logits, memory = rnn(tokens)
    found = model(tokens)
    torch.testing.assert_close(found.logits[..., :-1], logits, rtol=0, atol=atol)
    torch.testing.assert_close(found.cache.get_recurrent_state(0), memory, rtol=0, atol=atol)
    assert (found.logits.softmax(-1)[..., -1] == 0).all(), "the beginning is never predicted"
    with_begin = model(torch.cat([torch.full((2, 1), rnn.vocab_size), tokens], 1)).logits[..., :-1]
    first = rnn.readout(rnn.init_memory(2))[:, None]
    torch.testing.assert_close(with_begin, torch.cat([first, logits], 1), rtol=0, atol=atol)


@pytest.fixture(scope="module")
def model(hf_folder):
    return transformers.AutoModelForCausalLM.from_pretrained(hf_folder)


def padded(rows, side):
    """Rows of different lengths as tokens and mask; what pads is a token like any other, 7."""
    longest = max(map(len, rows))
    tokens, mask = torch.full((len(rows), longest), 7), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(len(row))
        tokens[i, place], mask[i, place] = torch.tensor(row), 1
    return tokens, mask


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_does_not_touch_the_memory(model, side):
    rows = [list(b"to be or not"), list(b"to"), [], list(b"that is the question")]
    tokens, mask = padded(rows, side)
    first = torch.randn(len(rows), 2, 8)  # also if the streams have begun before
    for memory in (model.rnn.init_memory(len(rows)), first):
        found = model(tokens, attention_mask=mask, cache=model.make_cache(memory))
        for i, row in enumerate(rows):
            read = model(torch.tensor([row], dtype=torch.long), cache=model.make_cache(memory[i : i + 1]))
            alike = {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(found.logits[i][mask[i] == 1], read.logits[0], **alike)
            state = found.cache.get_recurrent_state(0)[i : i + 1]
            torch.testing.assert_close(state, read.cache.get_recurrent_state(0), **alike)
            torch.testing.assert_close(found.logits[i, -1, :-1], model.rnn.readout(state)[0], **alike)


@torch.no_grad()
def test_a_stream_goes_on_exactly(model, tmp_path):
    tokens = torch.randint(256, (3, 40))
    whole = model(tokens)
    first = model(tokens[:, :25])
    assert first.cache.get_recurrent_state(0).shape == (3, 2, 8)
    torch.save(first.cache.get_recurrent_state(0), tmp_path / "memory.pt")
    again = model.make_cache(torch.load(tmp_path / "memory.pt", weights_only=True))
    for cache in (first.cache, again):
        mask = torch.ones(3, 40)  # as generate gives it, of all that was ever read
        rest = model(tokens[:, 25:], attention_mask=mask, cache=cache)
        torch.testing.assert_close(rest.logits, whole.logits[:, 25:])
        state = rest.cache.get_recurrent_state(0)
        torch.testing.assert_close(state, whole.cache.get_recurrent_state(0))
    with pytest.raises(UserError, match="3 streams, but tokens of 2"):
        model(tokens[:2], cache=again)


def test_a_token_that_is_none_is_refused(model):
    with pytest.raises(IndexError):
        model(torch.tensor([[97, 257]]))


@torch.no_grad()
def test_only_the_logits_that_are_asked_for_are_computed(model):
    tokens = torch.randint(256, (2, 9))
    whole = model(tokens, use_cache=False)
    assert whole.cache is None
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, whole.logits[:, -2:])
    kept = model(tokens, logits_to_keep=torch.tensor([0, 5])).logits
    torch.testing.assert_close(kept, whole.logits[:, [0, 5]])
    assert model(tokens, use_cache=False, return_dict=False)[0].shape == (2, 9, 257)
    assert model(tokens[:, :0]).logits.shape == (2, 0, 257)


@torch.no_grad()
def test_of_a_long_prompt_one_memory_is_kept(model):
    tokens, mask = padded([torch.randint(256, (length,)).tolist() for length in (600, 300, 10)], "left")
    seen = []
    hook = model.rnn.readout.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    with patch.object(model.rnn, "rollout", wraps=model.rnn.rollout) as rollout:
        last = model(tokens, attention_mask=mask, logits_to_keep=1)
    hook.remove()
    assert seen == [1] and max(call.args[0].shape[1] for call in rollout.call_args_list) == 256
    whole = model(tokens, attention_mask=mask)
    torch.testing.assert_close(last.logits, whole.logits[:, -1:], rtol=1e-4, atol=1e-5)
    alike = (found.cache.get_recurrent_state(0) for found in (last, whole))
    torch.testing.assert_close(*alike, rtol=1e-4, atol=1e-5)


def test_labels_give_the_loss_and_its_gradient_goes_back_through_time(model):
    tokens = torch.randint(256, (2, 9))
    labels = tokens.clone()
    labels[0, 4:] = -100
    loss = model(tokens, labels=labels).loss
    logits = model.rnn(tokens)[0][:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    (of_m_0,) = torch.autograd.grad(loss, model.rnn.m_0)
    assert of_m_0.abs().sum() > 0
    with_begin = torch.cat([torch.full((2, 1), 256), tokens], 1)
    more = model(with_begin, labels=with_begin).loss
    first = torch.nn.functional.cross_entropy(model.rnn.readout(model.rnn.init_memory(2)), tokens[:, 0])
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(more, (first + 8 * whole) / 9, msg="m_0 is asked for the first token")


def test_a_backward_pass_may_come_after_the_cache_has_gone_on(model):
    cache = model.make_cache(model.rnn.init_memory(2))
    first = model(torch.randint(256, (2, 5)), cache=cache).logits.logsumexp(-1).sum()
    model(torch.randint(256, (2, 5)), cache=cache)
    first.backward()
    model.zero_grad()


def test_saved_again_it_is_the_same_and_stays_float32(model, tmp_path):
    model.save_pretrained(tmp_path / "again")
    assert {"modeling_retain.py", "model.safetensors"} <= {file.name for file in (tmp_path / "again").iterdir()}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, "auto"):
        again = RetainForCausalLM.from_pretrained(tmp_path / "again", dtype=dtype)
        for name, value in model.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(again.state_dict()[name], value), name
    assert again.config.to_dict() == model.config.to_dict() | {"_name_or_path": again.config.name_or_path}


def test_what_is_pushed_to_the_hub_has_the_file_for_remote_code(model, monkeypatch):
    hub, pushed = transformers.utils.hub, set()
    made = SimpleNamespace(repo_id="me/book", save=lambda path: None)
    monkeypatch.setattr(hub, "hf_api", lambda: SimpleNamespace(create_repo=lambda *given, **more: made))
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *given, **more: made)
    monkeypatch.setattr(
        model, "_upload_modified_files", lambda folder, *given, **more: pushed.update(os.listdir(folder))
    )
    model.push_to_hub("me/book")
    assert pushed == {"config.json", "generation_config.json", "model.safetensors", "modeling_retain.py"}


def test_a_new_model_is_initialised_as_an_rnn_is(model):
    torch.manual_seed(3)
    new = RetainForCausalLM(model.config)
    torch.manual_seed(3)
    like = RetainForCausalLM(RetainConfig(**model.config.to_dict()))
    assert torch.equal(new.rnn.m_0, like.rnn.m_0) and new.rnn.m_0.std() > 0.5


def test_the_vocabulary_is_for_good(model):
    with pytest.raises(UserError, match="256 tokens and cannot get more"):
        model.resize_token_embeddings(300)


def test_a_cell_that_no_config_names_is_refused(tmp_path):
    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(8, 8)

        def forward(self, memory, inputs):
            return memory + self.linear(inputs)[:, None]

    config = tiny(data=data_config(name="stdlib"))
    rnn = retain.RNN(256, config.memory, config.teacher, config.cell, cell=Mine())
    retain.save(rnn, config, tmp_path / "run")
    with pytest.raises(UserError, match="its cell, .*Mine, was given in Python"):
        export_hf(load_run(tmp_path / "run", cell=Mine()), tmp_path / "new")
    assert not (tmp_path / "new").exists()
