"""The tokenizer of a run for transformers: bytes, or the run's own subwords."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from retain.errors import UserError
from retain.runs.data import read_tokenizer
from retain.runs.run import Run

BEGIN, END = "<|begin|>", "<|end|>"


def make_tokenizer(run: Run) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of a run; None if its tokens are numbers or pixels.

    The tokenizer adds no tokens to a text. Token V, `<|begin|>`, is the padding and the empty prompt; the RNN does not
    read it. If the run's documents have an end symbol, the end token is the tokenizer's own or `<|end|>`. Otherwise it
    is `<|begin|>`, which is never predicted, because many tools need an end token.

    Raises:
        UserError: The run's tokenizer.json does not have the run's vocabulary, or has a token of such a name.
    """
    vocab_size, end = run.state["vocab_size"], run.state.get("end")
    own = read_tokenizer(run.path)
    if own is None and run.state["kind"] != "text":
        return None
    tokenizer = _bytes(end) if own is None else own
    tokenizer.no_padding()
    tokenizer.no_truncation()
    last = getattr(run.config.data, "end", None) or END
    special = [*([END] if end is not None and last == END else []), BEGIN]
    if own is not None and (taken := [name for name in special if own.token_to_id(name) is not None]):
        raise UserError(f"tokenizer: {taken[0]!r} is a token of the run, but transformers needs that name")
    tokenizer.add_special_tokens(special)
    if tokenizer.token_to_id(BEGIN) != vocab_size or (end is not None and tokenizer.token_to_id(last) != end):
        raise UserError(f"tokenizer: its vocabulary is not the run's, of {vocab_size} tokens; copy the run's file")
    tokenizer.post_processor = processors.Sequence([])  # the run was trained without the tokens that it would add
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        pad_token=BEGIN,
        eos_token=BEGIN if end is None else last,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        # A text of bytes may contain the characters <|begin|>.
        **({"split_special_tokens": True} if own is None else {}),
    )


def _bytes(end: int | None) -> Any:
    """Return a tokenizer whose tokens are the bytes of UTF-8; `end` is a byte that UTF-8 never uses."""
    names = {name: byte for byte, name in bytes_to_unicode().items()}
    if end is not None:
        names = {END if byte == end else name: byte for name, byte in names.items()}
    tokenizer = Tokenizer(models.BPE(vocab=names, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
