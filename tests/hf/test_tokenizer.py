"""The tokenizer that goes with an exported run gives the very tokens of the run, and the text back."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import train_tiny
from retain.config import data_config
from retain.errors import UserError
from retain.runs.run import load_run

transformers = pytest.importorskip("transformers", reason="needs transformers, of retain[hf]")

from retain.hf import export_hf, make_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def of_bytes(hf_folder):
    return transformers.AutoTokenizer.from_pretrained(hf_folder)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_round_trip(of_bytes, text):
    ids = of_bytes(text).input_ids
    assert ids == [*text.encode()]
    assert of_bytes.decode(ids, skip_special_tokens=True) == text


def test_names_of_special_tokens_and_odd_spaces_are_text_like_any_other(of_bytes):
    text = " a <|begin|>  b<|end|> .\t\r\n\0 ÿ é e\u0301 \ufeff , n't 🤷🏽 "
    ids = of_bytes(text).input_ids
    assert ids == [*text.encode()] and of_bytes.decode(ids) == text
    assert len(of_bytes) == 257 and of_bytes.bos_token_id == of_bytes.pad_token_id == 256
    assert of_bytes.decode([256, 97, 0xC3, 98], skip_special_tokens=True) == "a�b", "bytes that are no UTF-8"


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    lines = [json.dumps({"text": f"once there was a cat no. {i}, and it was happy"}) for i in range(200)]
    path.write_text("\n".join(lines))
    return path


def trained(stories, out, **more):
    return load_run(train_tiny(out, data=data_config(name="documents", path=str(stories), seq_len=8, **more)))


def test_the_end_of_documents_is_the_end_of_generation(stories, tmp_path):
    run = trained(stories, tmp_path / "run")
    export_hf(run, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (tokenizer.eos_token_id, tokenizer("a<|end|>").input_ids) == (255, [*b"a<|end|>"])
    assert tokenizer.decode([256, 97, 255], skip_special_tokens=True) == "a"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        model.rnn.readout.head.bias[255] += 100  # now the document ends
    inputs = tokenizer(["once", "a"], return_tensors="pt", padding=True)
    assert model.generate(**inputs, max_new_tokens=9)[:, 4:].tolist() == [[255], [255]]


@pytest.fixture(scope="module")
def subwords(tmp_path_factory):
    """A tokenizer.json with special tokens and a post-processor of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["[CLS]"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["once there was a cat, and it was happy"] * 9, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 0)])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_subwords_are_those_of_the_run(stories, subwords, tmp_path):
    from tokenizers import Tokenizer

    run = trained(stories, tmp_path / "run", tokenizer=str(subwords), reset=True)
    export_hf(run, tmp_path / "hf")
    own, tokenizer = Tokenizer.from_file(str(subwords)), transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text, size = "once there was a dog, é", run.state["vocab_size"]
    ids = own.encode(text, add_special_tokens=False).ids
    assert tokenizer(text).input_ids == ids
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, len(tokenizer)) == (size - 1, size, size + 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        found = model(**tokenizer(text, return_tensors="pt")).logits[0, :, :-1]
        torch.testing.assert_close(found, run.rnn(torch.tensor([ids]))[0][0], rtol=1e-4, atol=1e-5)

    other = shutil.copytree(tmp_path / "run", tmp_path / "other")
    own.add_tokens(["more"])
    own.save(str(other / "tokenizer.json"))
    with pytest.raises(UserError, match="tokenizer: its vocabulary is not the run's"):
        make_tokenizer(load_run(other))
    own.add_special_tokens(["<|begin|>"])
    own.save(str(other / "tokenizer.json"))
    with pytest.raises(UserError, match=r"'<\|begin\|>' is a token of the run, but"):
        make_tokenizer(load_run(other))


def test_numbers_have_no_tokenizer(retrieval_run, digits_run):
    assert make_tokenizer(load_run(retrieval_run)) is None and make_tokenizer(load_run(digits_run)) is None
