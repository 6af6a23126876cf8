"""A causal language model of Hugging Face transformers as the given trunk of a teacher."""

from __future__ import annotations

import hashlib
import inspect
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from retain.errors import UserError
from retain.model.given import GivenTrunk

WEIGHTS = (".safetensors", ".bin", ".gguf")
T = TypeVar("T")


class GivenLanguageModel(GivenTrunk):
    """A causal language model as a trunk, which reads a start token and then the tokens.

    Args:
        model: A causal language model of transformers.
        start: The model's id of the start token.
        vocabulary: The model's id of each of the run's tokens.
        layer: The layer whose hidden states are read, from 1 on. None is the last, with the model's last norm.
        identity: As in `GivenTrunk`.

    Raises:
        UserError: The model has fewer layers, or is not causal.
    """

    def __init__(self, model: Any, start: int, vocabulary: list[int], layer: int | None, identity: dict[str, Any]):
        super().__init__()
        config = model.config.get_text_config()
        self.model, self.start, self.layer, self.identity = model.eval().requires_grad_(False), start, layer, identity
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.width, self.depth, self.vocab_size = config.hidden_size, config.num_hidden_layers, len(vocabulary)
        if layer is not None and layer > self.depth:
            raise UserError(f"teacher.layer: {layer} is above the {self.depth} layers of {identity['from']}")
        self.register_buffer("vocabulary", torch.tensor(vocabulary))
        self.vocabulary: Tensor
        tokens = torch.arange(8)[None] % self.vocab_size
        last = torch.tensor([[*tokens[0, :-1].tolist(), (int(tokens[0, -1]) + 1) % self.vocab_size]])
        before, after = (self(part, False)[0][:, :-1] for part in (tokens, last))
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-4):
            raise UserError(f"teacher.from: {identity['from']} looks ahead; give a causal language model")

    def read(self, tokens: Tensor, logits: bool, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """Read tokens, as described in `GivenTrunk.read`."""
        ids = torch.cat([tokens.new_full((len(tokens), 1), self.start), self.vocabulary[tokens]], 1)
        settings = {"input_ids": ids, "use_cache": False, "output_hidden_states": True}
        if not logits:  # logits are most of the work of a small model
            found = self.model.base_model(**settings)
            return found.hidden_states[-1 if self.layer is None else self.layer], None
        if skip and self.keeps:
            settings["logits_to_keep"] = ids.shape[1] - skip
        found = self.model(**settings)
        states = found.hidden_states[-1 if self.layer is None else self.layer]
        return states, found.logits[:, skip - ids.shape[1] :, self.vocabulary]

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings, as described in `GivenTrunk.embeddings`."""
        tables = self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight
        return tables[0][self.vocabulary], tables[1][self.vocabulary]


def open_language_model(
    source: str, tokenizer: str | None, layer: int | None, length: int, what: str = "data.seq_len"
) -> GivenLanguageModel:
    """Load a causal language model for the tokens of a run's tokenizer, frozen, in float32.

    Args:
        source: The model's folder, a .gguf file, or hf:NAME.
        tokenizer: The content of the run's tokenizer.json. The model's tokenizer must have all of its tokens.
        layer: The layer whose hidden states are read.
        length: The most tokens that are read at once.
        what: The setting that `length` follows from.

    Raises:
        UserError: The source is not a causal language model, or its tokenizer, layers or length do not fit.
    """
    model = load_language_model(source)
    theirs, start, _ = read_tokenizer(source)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and length + 1 > longest:
        raise UserError(f"{what}: {length} tokens and a start token are above the {longest} positions of {source}")
    known = theirs.get_vocab(with_added_tokens=True)
    rows = model.get_input_embeddings().num_embeddings
    if start >= rows or max(known.values()) >= rows:
        raise UserError(
            f"teacher.from: the tokenizer of {source} has {max(known.values()) + 1} tokens, its model {rows}; they do "
            "not belong together"
        )
    identity = identify(source, layer)
    if source.startswith("hf:"):
        identity["revision"] = getattr(model.config, "_commit_hash", None)
    return GivenLanguageModel(model, start, _match(source, tokenizer, known), layer, identity)


def load_language_model(source: str) -> Any:
    """Load a causal language model of transformers in float32, like `open_language_model`, but with its own tokens.

    Raises:
        UserError: The source is not a causal language model.
    """
    transformers = _transformers()
    where = _locate(source)
    if _read_config(source).is_encoder_decoder:
        raise UserError(f"teacher.from: {source} has an encoder and a decoder; give a causal language model")
    with _quiet():
        load = transformers.AutoModelForCausalLM.from_pretrained
        model, found = _explained(source, lambda: load(**where, dtype=torch.float32, output_loading_info=True))
    if lost := sorted(found["missing_keys"]):
        raise UserError(f"teacher.from: {source} has no weights for {lost[0]}; give a causal language model")
    return model.eval()


def read_width(source: str) -> int:
    """Return how many numbers a hidden state of a language model has, without loading its weights.

    Raises:
        UserError: The source is not a language model.
    """
    width: int = _read_config(source).get_text_config().hidden_size
    return width


def _read_config(source: str) -> Any:
    where, transformers = _locate(source), _transformers()
    with _quiet():
        return _explained(source, lambda: transformers.AutoConfig.from_pretrained(**where))


def _match(source: str, tokenizer: str | None, known: dict[str, int]) -> list[int]:
    """Return the model's id of each token of the run's tokenizer, in the order of the run's ids."""
    from tokenizers import Tokenizer

    remedy = f"give --teacher.from {source} on the command line, which takes its tokenizer"
    if tokenizer is None:
        raise UserError(f"data.tokenizer: {source} reads subwords, and this data has none; {remedy}")
    own = Tokenizer.from_str(tokenizer).get_vocab(with_added_tokens=True)
    if missing := sorted(own.keys() - known.keys()):
        raise UserError(
            f"data.tokenizer: {missing[0]!r} and {len(missing) - 1} other tokens are unknown to {source}; {remedy}"
        )
    numbers = {number: known[name] for name, number in own.items()}
    return [numbers.get(number, 0) for number in range(max(numbers) + 1)]  # some ids may have no token


def read_tokenizer(source: str) -> tuple[Any, int, str]:
    """Read the tokenizer of a language model.

    Returns:
        The tokenizer, of Hugging Face tokenizers; the id of the token that begins every text; and the token that ends a
        document.

    Raises:
        UserError: The source has no tokenizer that can be used.
    """
    path = Path(source)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return _read_tokenizer(source, tuple((file.name, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=1)  # a large .gguf file takes many seconds, and both data and model read its tokenizer
def _read_tokenizer(source: str, stamp: tuple[tuple[str, int], ...]) -> tuple[Any, int, str]:
    transformers = _transformers()
    with _quiet():
        where = _locate(source)
        found = _explained(source, lambda: transformers.AutoTokenizer.from_pretrained(**where), "tokenizer")
    if not hasattr(found, "backend_tokenizer"):
        raise UserError(f"teacher.from: {source} has no fast tokenizer (library tokenizers); give a model with one")
    if found.eos_token_id is None:
        raise UserError(f"teacher.from: the tokenizer of {source} names no eos_token to end a document with; name one")
    start = found.eos_token_id if found.bos_token_id is None else found.bos_token_id
    return found.backend_tokenizer, start, found.eos_token


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("teacher.from: this needs transformers; run pip install 'retain[hf]'") from None
    return transformers


def identify(source: str, layer: int | None) -> dict[str, Any]:
    """Return what identifies a language model, without loading it: the checksum of its files, or its name."""
    if source.startswith("hf:"):
        return {"from": source, "layer": layer}
    path, checksum = Path(source), hashlib.sha256()
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in WEIGHTS)
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(2**22):
                checksum.update(block)
    return {"from": source, "layer": layer, "sha256": checksum.hexdigest()}


def _locate(source: str) -> dict[str, Any]:
    """Return the arguments by which transformers finds a model. Raises UserError if none is at a path."""
    if source.startswith("hf:"):
        return {"pretrained_model_name_or_path": source.removeprefix("hf:")}
    path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        try:
            import gguf  # noqa: F401
        except ImportError:
            raise UserError("teacher.from: a .gguf file needs gguf; run pip install 'retain[gguf]'") from None
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if not (path / "config.json").is_file():
        raise UserError(f"teacher.from: {source} is not a language model's folder; give one, a .gguf file or hf:NAME")
    return {"pretrained_model_name_or_path": str(path), "local_files_only": True}


def _explained(source: str, load: Callable[[], T], what: str = "causal language model") -> T:
    """Call `load`, and raise UserError if transformers fails."""
    try:
        return load()
    except Exception as error:  # a damaged folder may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"teacher.from: {source} has no {what} that transformers loads ({reason})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advice inside: what matters is checked and reported in one line."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # the progress bar of a .gguf file follows no setting
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
