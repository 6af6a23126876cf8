"""A tokenizer without the symbols that a corpus does not need (`--data.prune-vocab`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable

import numpy as np

from retain.config import DocumentDataConfig
from retain.data.file_array import open_array
from retain.data.files import find_cache_folder
from retain.data.prepare import prepare
from retain.errors import UserError
from retain.files import replace_file

BLOCK = 2**22


def prune(config: DocumentDataConfig) -> DocumentDataConfig:
    """Return settings whose tokenizer has only the symbols that the training split needs.

    It encodes that split as the whole tokenizer does. Other text may take more symbols. Its file in the cache folder
    maps the run's numbers to symbols, and the run folder has a copy.
    """
    if config.stream:
        raise UserError("data.prune_vocab: the symbols of a stream are not known in advance; leave out data.stream")
    folder, _, codec = prepare(dataclasses.replace(config, prune_vocab=False))
    stream, counts = open_array(folder / "train.tokens", codec.dtype), np.zeros(codec.vocab_size, bool)
    for start in range(0, len(stream), BLOCK):
        counts[np.asarray(stream[start : start + BLOCK])] = True
    assert codec.tokenizer is not None
    pruned = prune_tokenizer(codec.tokenizer, np.flatnonzero(counts).tolist(), config.end).encode()
    path = find_cache_folder() / "tokenizers" / f"{hashlib.sha256(pruned).hexdigest()[:16]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, pruned)
    return dataclasses.replace(config, tokenizer=str(path), prune_vocab=False)


def prune_tokenizer(tokenizer: str, used: Iterable[int], end: str | None) -> str:
    """Return a tokenizer.json with the symbols numbered `used`, the end symbol, and the symbols they are merged from.

    Single characters, single bytes and the unknown symbol stay. All symbols are numbered anew in their old order.
    Raises UserError for a kind of tokenizer that cannot be pruned.
    """
    from tokenizers import Tokenizer

    content = json.loads(tokenizer)
    model, added = content["model"], content.get("added_tokens") or []
    numbers = Tokenizer.from_str(tokenizer).get_vocab(with_added_tokens=True)
    names = {number: name for name, number in numbers.items()}
    kept = {names[number] for number in used if number in names} | ({end} if end is not None else set())
    in_model = set(model["vocab"]) if isinstance(model["vocab"], dict) else {piece for piece, _ in model["vocab"]}
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    kept |= {name for name in in_model if _is_single(name.removeprefix(prefix).removesuffix(suffix))}
    unknown = model.get("unk_token")
    if model.get("unk_id") is not None:
        unknown = model["vocab"][model["unk_id"]][0]
    if unknown is not None:
        kept.add(unknown)
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.get("merges") or []]
    # A merge joins two symbols, which may come from merges themselves.
    found = 0
    while len(kept) > found:
        found = len(kept)
        for left, right in reversed(merges):
            if left + right.removeprefix(prefix) in kept:
                kept |= {left, right}
    order = sorted(kept, key=numbers.__getitem__)
    now = {name: number for number, name in enumerate(order)}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name: number for name, number in now.items() if name in in_model}
    else:
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in kept]
        model["unk_id"] = None if unknown is None else now[unknown]
    if "merges" in model:
        model["merges"] = [
            list(pair) for pair in merges if {*pair, pair[0] + pair[1].removeprefix(prefix)} <= now.keys()
        ]
    content["added_tokens"] = [token | {"id": now[token["content"]]} for token in added if token["content"] in now]
    content["post_processor"] = None  # it would add special symbols, which our texts lack, by their old numbers
    text = json.dumps(content, ensure_ascii=False)
    if Tokenizer.from_str(text).get_vocab(with_added_tokens=True) != now:
        raise UserError(f"data.prune_vocab: this tokenizer ({model.get('type')}) cannot be pruned; leave it out")
    return text


def _is_single(name: str) -> bool:
    """Whether a symbol is one character, or one byte as some tokenizers write it."""
    return len(name) == 1 or re.fullmatch("<0x[0-9A-F]{2}>", name) is not None
