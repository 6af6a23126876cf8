"""A tokenizer without the symbols that a corpus does not need, and documents that are one text."""

import dataclasses

import pytest

import language_models as made
from conftest import tiny
from retain.config import DocumentDataConfig
from retain.data import SPLITS, load_data
from retain.data.prune import prune_tokenizer
from retain.errors import UserError
from retain.training.loop import train
from runs import run


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "cache"))


def subwords(kind, end="[END]"):
    """A tokenizer of each kind, some of whose symbols no line of the corpus has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(getattr(models, kind)())
    if kind != "Unigram":
        tokenizer.model.unk_token = "[UNK]"
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    unknown = {"unk_token": "[UNK]"} if kind == "Unigram" else {}
    trainer = getattr(trainers, f"{kind.replace('BPE', 'Bpe')}Trainer")(
        special_tokens=["[UNK]", end], show_progress=False, **unknown
    )
    tokenizer.train_from_iterator([made.text(100), "unheard words of another text"] * 3, trainer)
    return tokenizer


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "WordPiece", "Unigram"])
def test_the_corpus_is_encoded_by_fewer_symbols_as_by_all(kind):
    from tokenizers import Tokenizer

    tokenizer, text = subwords(kind), made.text(20)
    pruned = Tokenizer.from_str(prune_tokenizer(tokenizer.to_str(), tokenizer.encode(text).ids, "[END]"))
    numbers = sorted(pruned.get_vocab(with_added_tokens=True).values())
    assert numbers == list(range(len(numbers))) and len(numbers) < tokenizer.get_vocab_size()
    assert pruned.token_to_id("[END]") is not None
    assert pruned.encode(text).tokens == tokenizer.encode(text).tokens
    assert prune_tokenizer(pruned.to_str(), pruned.encode(text).ids, "[END]") == pruned_again(pruned)


def pruned_again(pruned):
    """What is pruned already stays as it is, but for how JSON is written."""
    import json

    return json.dumps(json.loads(pruned.to_str()), ensure_ascii=False)


def documents(tmp_path, **fields):
    (tmp_path / "book.txt").write_text(made.text(120))
    subwords("BPE").save(str(tmp_path / "tokenizer.json"))
    return DocumentDataConfig(
        path=str(tmp_path / "book.txt"), tokenizer=str(tmp_path / "tokenizer.json"), seq_len=12, **fields
    )


@pytest.mark.parametrize("end", [None, "[END]"])
def test_one_text_is_three_documents_cut_where_a_line_ends(tmp_path, end):
    from tokenizers import Tokenizer

    config = documents(tmp_path, end=end)
    data, tokenizer = load_data(config), Tokenizer.from_file(config.tokenizer)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    assert (data.end, data.vocab_size) == ((size, size + 1) if end is None else (tokenizer.token_to_id(end), size))
    parts = [data.splits[split][:-1].tolist() for split in SPLITS]
    assert [int(data.splits[split][-1]) for split in SPLITS] == [data.end] * 3
    whole = tokenizer.encode(made.text(120)).ids
    assert [*parts[0], *parts[1], *parts[2]] == whole and len(parts[0]) / len(whole) == pytest.approx(0.9, abs=0.02)
    assert data.info["read"]["documents"] == 3


def test_a_run_keeps_the_pruned_tokenizer_and_goes_on_with_it(tmp_path, retain):
    config = tiny(data=documents(tmp_path, prune_vocab=True), validate_every="4steps")
    train(config, tmp_path / "run", progress_bar=False)
    whole = dataclasses.replace(config.data, prune_vocab=False)
    data = load_data(config.data)
    assert data.vocab_size < load_data(whole).vocab_size
    assert (tmp_path / "run" / "tokenizer.json").read_text() == data.tokenizer
    (tmp_path / "other.txt").write_text(made.text(40, seed=1))
    code, said, _ = retain("eval", tmp_path / "run", "--data", tmp_path / "other.txt", "--split", "all")
    assert code == 0 and "bits per byte" in said, "it is not pruned anew for other text"

    class Stop(Exception):
        pass

    def stop(number):
        if number == 8:
            raise Stop

    with pytest.raises(Stop):
        run(config, tmp_path / "stopped", stop)
    run(config, tmp_path / "stopped", resume=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "stopped")]
    assert weights[0] == weights[1]


def test_what_says_something_of_a_tokenizer_needs_one(tmp_path):
    for field, value in (("end", "[END]"), ("prune_vocab", True)):
        with pytest.raises(UserError, match=f"data.{field}: .* needs data.tokenizer"):
            DocumentDataConfig(path="book.txt", **{field: value})
