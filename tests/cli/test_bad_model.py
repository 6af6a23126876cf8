"""All that may be wrong with the model of --teacher.from: one clear line, exit 2, no run folder."""

import json
import shutil

import pytest

transformers = pytest.importorskip("transformers")

import language_models as made  # noqa: E402
from conftest import train_tiny  # noqa: E402
from retain.model import language_model  # noqa: E402

EVEN = ["--data.split", "0.4", "0.3", "0.3"]
BAD = [
    ("nowhere", [], ["teacher.from", "nowhere is not a language model's folder", "hf:NAME"]),
    ("book.txt", [], ["teacher.from", "book.txt is not a language model's folder"]),
    ("broken", [], ["teacher.from", "broken has no"]),
    ("headless", [], ["teacher.from", "headless has no weights for lm_head.weight", "causal language model"]),
    ("t5", [], ["teacher.from", "t5 has an encoder and a decoder", "causal language model"]),
    ("bert", [], ["teacher.from", "bert looks ahead", "causal language model"]),
    ("mute", [], ["teacher.from", "mute has no tokenizer that transformers loads"]),
    ("endless", [], ["teacher.from", "endless names no eos_token"]),
    (
        "misfit",
        [],
        ["teacher.from", "the tokenizer of", "misfit has 340 tokens, its model 300", "not belong"],
    ),
    (
        "gpt2",
        ["--data.seq-len", "32", "--data.split", "0.4", "0.3", "0.3"],
        ["data.seq_len", "32", "above the 32 positions"],
    ),
    ("gpt2", ["--teacher.layer", "3"], ["teacher.layer", "3 is above the 2 layers"]),
    ("gpt2", ["--teacher.layer", "0"], ["teacher.layer", "0", "positive"]),
    ("gpt2", ["--teacher.encoder", "register"], ["teacher.from", "state encoder, not register"]),
    ("gpt2", ["--data.tokenizer", "other.json", "--data.end", "None"], ["data.tokenizer", "'zebra'", "gpt2"]),
    ("gpt2", ["--data.end", "None"], ["data.end", "None adds a symbol that", "gpt2 lacks"]),
    ("gpt2", ["--data.end", "<eot>"], ["data.end", "'<eot>' is not a symbol", "leave it out"]),
    ("gpt2", ["--data.stream", "--data.prune-vocab"], ["data.prune_vocab", "stream", "leave out data.stream"]),
    ("torn.gguf", [], ["teacher.from", "torn.gguf has no"]),
    ("bptt", [], ["teacher.from", "bptt trained no trunk", "smt"]),
    (
        "numbers",
        ["--recipe", "language-model"],
        ["recipe", "language-model needs a language model", "numbers is a run"],
    ),
    ("bert", ["--recipe", "language-model"], ["teacher.from", "bert looks ahead", "causal language model"]),
    ("numbers", [], ["teacher.from", "numbers has a vocabulary of 9 tokens, this data one of 256"]),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("models")
    subwords = made.tokenizer()
    (folder / "book.txt").write_text(made.text(60))
    made.gpt2(folder / "gpt2")
    shutil.copytree(folder / "gpt2", folder / "broken")
    (folder / "broken" / "config.json").write_text("{")
    small = {"vocab_size": len(subwords), "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    llama = transformers.LlamaConfig(**small, num_hidden_layers=1)
    made.save(transformers.LlamaModel(llama), folder / "headless", subwords)
    t5 = transformers.T5Config(vocab_size=len(subwords), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    made.save(transformers.T5ForConditionalGeneration(t5), folder / "t5", subwords)
    bert = transformers.BertConfig(**small, num_hidden_layers=1)
    made.save(transformers.BertForMaskedLM(bert), folder / "bert", subwords)
    made.save(transformers.LlamaForCausalLM(llama), folder / "mute")
    subwords.eos_token = None
    made.save(transformers.LlamaForCausalLM(llama), folder / "endless", subwords)
    llama = transformers.LlamaConfig(**small | {"vocab_size": 300}, num_hidden_layers=1)
    made.save(transformers.LlamaForCausalLM(llama), folder / "misfit", made.tokenizer())
    other = Tokenizer(models.WordLevel({"zebra": 0, "once": 1}, "zebra"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    other.save(str(folder / "other.json"))
    (folder / "torn.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    train_tiny(folder / "bptt", phases=("bptt",))
    train_tiny(folder / "numbers", budget="2steps")
    return folder


@pytest.fixture(autouse=True)
def there(models, monkeypatch):
    monkeypatch.chdir(models)
    monkeypatch.setenv("RETAIN_CACHE", str(models / "cache"))


def refused(retain, *options):
    short = ("--smt.bptt-window", "4", "--dmt.bptt-window", "4", "--tracker", "None", "--quiet", "--out", "run")
    length = () if "--data.seq-len" in options else ("--data.seq-len", "12")
    code, _, complaint = retain("train", *options, *short, *length)
    said = [line for line in complaint.splitlines() if not line.startswith("read ")]
    assert code == 2 and len(said) == 1, complaint
    return said[0]


@pytest.mark.parametrize(("model", "options", "fragments"), BAD)
def test_a_model_that_cannot_be_a_trunk_is_refused_in_one_line(model, options, fragments, models, retain):
    said = refused(retain, "text", "--data", "book.txt", "--teacher.from", model, *options)
    assert all(fragment in said for fragment in fragments), said
    assert not (models / "run").exists()


def test_other_commands_and_data_say_what_they_need(retain):
    assert "stdlib is not read by a tokenizer" in refused(retain, "stdlib", "--teacher.from", "gpt2")
    assert "recipe: language-model needs a language model; give" in refused(
        retain, "stdlib", "--recipe", "language-model"
    )
    assert "teacher.layer: 1 needs teacher.from" in refused(retain, "stdlib", "--teacher.layer", "1")
    for command, options in (("compare", []), ("sweep", ["--vary", "memory.width=8"])):
        code, _, said = retain(command, "stdlib", "--teacher.from", "gpt2", *options)
        assert code == 2 and "stdlib is not read by a tokenizer" in said
    for line, fragment in (
        ([], "name the data first"),
        (["book.txt", "--out", "labels"], "name the model"),
        (["book.txt", "--teacher.from", "gpt2"], "name the folder"),
        (["book.txt", "--teacher.from", "gpt2", "--out", "labels", "--smt.lr", "1"], "--smt.lr: retain label does not"),
        (["book.txt", "--teacher.from", "gpt2", "--out", "labels", "--batch-size", "0"], "batch-size: '0' must be"),
    ):
        code, _, said = retain("label", *line)
        assert code == 2 and fragment in said and len(said.splitlines()) == 1, said


def test_a_gguf_file_without_gguf_names_the_extra(models, monkeypatch, retain):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    said = refused(retain, "text", "--data", "book.txt", "--teacher.from", "torn.gguf")
    assert "pip install 'retain[gguf]'" in said


def test_without_transformers_the_extra_is_named(models, monkeypatch, retain):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    said = refused(retain, "text", "--data", "book.txt", "--teacher.from", "gpt2")
    assert "pip install 'retain[hf]'" in said


def test_a_name_of_the_hub_is_passed_on(monkeypatch, retain):
    asked = []

    def refuse(pretrained_model_name_or_path, **more):
        asked.append(pretrained_model_name_or_path)
        raise OSError("no network here\nand more")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    said = refused(retain, "text", "--data", "book.txt", "--teacher.from", "hf:owner/model")
    assert "hf:owner/model has no tokenizer that transformers loads (no network here)" in said
    assert asked == ["owner/model"]


def test_a_gguf_file_is_read_as_the_model_that_it_holds(models, tmp_path):
    pytest.importorskip("gguf")
    folder = made.llama(tmp_path / "llama")
    made.gguf(tmp_path / "tiny.gguf", folder)
    json_of = {source: language_model.read_tokenizer(str(source))[0] for source in (folder, tmp_path / "tiny.gguf")}
    own = json.dumps(json.loads(json_of[folder].to_str()))
    import torch

    tokens = torch.arange(9)[None] + 270
    (states, logits), (theirs, other) = (
        language_model.open_language_model(str(source), own, None, 12)(tokens, True)
        for source in (folder, tmp_path / "tiny.gguf")
    )
    torch.testing.assert_close(states, theirs)
    torch.testing.assert_close(logits, other)
