"""Sampling from the RNN alone, token by token, at constant memory and constant time per token."""

from __future__ import annotations

import codecs
import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from retain.data import encode
from retain.data.subwords import Subwords, read_prompt
from retain.errors import UserError
from retain.model.cells import CELLS, GRUCell, LSTMCell
from retain.model.modes import evaluating
from retain.model.rnn import RNN
from retain.ops.graphs import Replayed
from retain.runs.data import read_tokenizer
from retain.runs.run import Run

log = logging.getLogger("retain")

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Reads tokens (B,) into memory (B, K, D) → logits (B, V), memory."""


def check_sampling(length: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises UserError naming the setting that makes no sense."""
    if length < 0:
        raise UserError(f"length: {length} must not be negative")
    if not math.isfinite(temperature) or temperature < 0:
        raise UserError(f"temperature: {temperature} must be 0 (the likeliest token) or above")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k: {top_k} must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p: {top_p} must lie in 0 … 1, above 0")


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token per row: logits (B, V) → (B,).

    temperature 0 takes the likeliest; top_k keeps the k likeliest; top_p keeps the fewest whose probability
    reaches p (Holtzman et al. 2020). Raises UserError where logits are no numbers (a GPU raises RuntimeError).
    """
    if temperature == 0:
        return logits.argmax(-1)
    # From 0 down: a temperature next to 0 makes no infinity of them.
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)
    if top_k is not None and top_k < logits.shape[-1]:
        values, kept = logits.topk(top_k)  # of equal ones no more than k
        logits = torch.full_like(logits, -math.inf).scatter(-1, kept, values)
    probability = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = probability.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        probability = torch.zeros_like(probability).scatter(-1, order, ordered.masked_fill(beyond, 0))
    if probability.device.type != "cpu":
        return torch.multinomial(probability, 1, generator=generator)[:, 0]
    # One number a row and where it falls; `multinomial` draws one for every token that there is, on a CPU at 10 to 40
    # times the cost. In float64, so that a large vocabulary's sum keeps its small parts.
    upto = probability.cumsum(-1, dtype=torch.float64)
    if not upto[:, -1].isfinite().all():
        raise UserError("logits: they are not finite, so that nothing can be drawn")
    drawn = torch.rand(len(upto), 1, dtype=upto.dtype, device=upto.device, generator=generator) * upto[:, -1:]
    return torch.searchsorted(upto, drawn, right=True)[:, 0]


def generate(
    rnn: RNN,
    prompt: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    step: Step | None = None,
    memory: Tensor | None = None,
) -> Iterator[Tensor]:
    """Read prompt (B, P) from m_0, then sample `length` tokens, yielding each (B,) as soon as it is drawn.

    `memory` (B, K, D) is one to go on from instead of m_0, as `rnn.step` gave it; the prompt may then be empty, (B, 0).
    What is kept is one memory, whatever the length. The RNN is in evaluation mode while it works, and between tokens
    in the mode that it had. `step` replaces `rnn.step`, as `fast_step` does. Raises UserError for settings that make
    no sense, before anything is read, and later where the logits are no numbers.
    """
    check_sampling(length, temperature, top_k, top_p)
    if memory is not None and memory.shape != (len(prompt), *rnn.m_0.shape):
        raise UserError(f"memory: {tuple(memory.shape)} is not that of prompt, {(len(prompt), *rnn.m_0.shape)}")
    return _stream(rnn, step or rnn.step, prompt, length, temperature, top_k, top_p, seed, memory)


class Piece(NamedTuple):
    """What a token adds to a text."""

    token: int | None
    """None: the text had ended before."""
    text: str


def generate_text(run: Run, prompt: str = "", length: int = 500, **settings: Any) -> list[str]:
    """`count` texts that follow a prompt, each up to its end symbol, a stop string or `length` tokens.

    `settings` are those of `stream_text`, which gives the texts as they come.
    """
    texts = zip(*stream_text(run, prompt, length, **settings), strict=True)
    return ["".join(piece.text for piece in pieces) for pieces in texts]


def stream_text(
    run: Run,
    prompt: str = "",
    length: int = 500,
    *,
    stop: Sequence[str] = (),
    count: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    step: Step | None = None,
) -> Iterator[list[Piece]]:
    """Sample `count` texts side by side after a prompt, yielding a piece of each for every token.

    A text ends before the first `stop` string that is complete, or before its end symbol. What may still become a stop
    string or a character is held back and comes with a later piece; the last list of pieces has no tokens, only what
    was held back. Tokens of data that is no text become numbers with spaces between. The same seed gives the same
    texts; with another count, others. `step` is what `fast_step(run.rnn, count)` gives. Raises UserError for settings
    that make no sense, before anything is read.
    """
    kind, vocab_size, end = run.state["kind"], run.state["vocab_size"], run.state.get("end")
    tokenizer = read_tokenizer(run.path)
    if count < 1:
        raise UserError(f"count: {count} must be at least 1")
    if stop and not tokenizer and kind != "text":
        raise UserError(f"stop: {stop[0]!r} is for text, and this run is of {kind}; leave it out")
    if isinstance(stop, str) or not all(stop):
        raise UserError(f"stop: {stop!r} must be a list of strings, none of them empty")
    tokens = read_prompt(tokenizer, prompt) if tokenizer else encode(prompt, kind, vocab_size)

    def reader() -> _Bytes | _Numbers | Subwords:
        if tokenizer:
            return Subwords(tokenizer, tokens)
        return _Bytes() if kind == "text" else _Numbers(after=bool(tokens))

    texts = [_Text(reader(), stop, end) for _ in range(count)]
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "step": step}
    return _pieces(generate(run.rnn, torch.tensor([tokens] * count, dtype=torch.long), length, **sampling), texts)


def _pieces(stream: Iterator[Tensor], texts: list[_Text]) -> Iterator[list[Piece]]:
    for drawn in stream:
        yield [text.read(token) for text, token in zip(texts, drawn.tolist(), strict=True)]
        if all(text.ended for text in texts):
            break
    yield [Piece(None, text.rest()) for text in texts]


class _Bytes:
    """The text of bytes, a character as soon as it is whole."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self, token: int) -> str:
        return self.decoder.decode(bytes([token]))

    def rest(self) -> str:
        return ""


class _Numbers:
    """Tokens as numbers with spaces between, also before the first where they come `after` others."""

    def __init__(self, after: bool) -> None:
        self.space = " " if after else ""

    def read(self, token: int) -> str:
        text, self.space = f"{self.space}{token}", " "
        return text

    def rest(self) -> str:
        return ""


class _Text:
    """A text up to the first of its stop strings that is whole, or its end symbol."""

    def __init__(self, reader: _Bytes | _Numbers | Subwords, stop: Sequence[str], end: int | None) -> None:
        self.reader, self.stop, self.end = reader, stop, end
        self.held, self.ended = "", False

    def read(self, token: int) -> Piece:
        if self.ended:
            return Piece(None, "")
        if token == self.end:
            text = self.rest()
            self.ended = True
            return Piece(None, text)
        return Piece(token, self._until_stop(self.reader.read(token)))

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        if self.ended:
            return ""
        return self._until_stop(self.reader.rest()) + self.held

    def _until_stop(self, text: str) -> str:
        """What is certain of the text, with what was held back before it."""
        text = self.held + text
        # The first to be whole, wherever the pieces of text were cut; of several, the longest.
        whole = [(place + len(stop), place) for stop in self.stop if (place := text.find(stop)) >= 0]
        if whole:
            self.held, self.ended = "", True
            return text[: min(whole)[1]]
        longest = max(map(len, self.stop), default=1)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self.stop):
                self.held = text[start:]
                return text[:start]
        self.held = ""
        return text


BF16_PRODUCTS = 8_000_000
"""Multiplications of a step (streams × weights) from which on bfloat16 weights are faster on a CPU: below it they are
slower, up to three times (docs/log.md)."""


READ_AT_ONCE = 2**22
"""At most so many numbers in the memories that are held while a prompt is read, a part of it at a time."""


def fast_step(rnn: RNN, batch: int = 1) -> Step:
    """`rnn.step` compiled, for long texts: the first step takes as long as compiling does, a minute or so.

    The weights are a copy of what they are now: in bfloat16 where products in it are fast and, on a CPU, `batch`
    streams make them large enough; memory stays float32, and so does a user's own cell. Nothing it gives back can be
    differentiated. Where nothing can be compiled there is a note in the log, and the step runs as it is. What it gives
    back is of inference mode: `.clone()` it before changing it in place.
    """
    from retain.devices import fast_bf16
    from retain.model.compiling import STEP_ON_CPU, can_compile, compiled

    device = rnn.m_0.device
    weights = sum(p.numel() for part in (rnn.cell, rnn.readout) for p in part.parameters())
    bf16 = fast_bf16(device) and (device.type != "cpu" or batch * weights >= BF16_PRODUCTS)
    frozen = copy.deepcopy(rnn).eval()
    if bf16:
        frozen.bfloat16()
        if isinstance(frozen.cell, (GRUCell, LSTMCell)) or type(rnn.cell) not in CELLS.values():
            # They compute memory in the dtype of their weights; of a user's cell nothing is known.
            frozen.cell.float()
            frozen.embed.float()
    exact: Step = frozen.step
    step = exact
    if can_compile(device):
        if device.type == "cpu":
            fast = compiled(exact, "step", STEP_ON_CPU)
            step = first_step_checked(fast, exact, lambda: compiled(exact, "step"), tolerance=0.1 if bf16 else 1e-3)
        else:
            step = compiled(exact, "step")
    if device.type == "cuda" and type(rnn.cell) in CELLS.values():  # one of the user's may look at values
        replayed: Any = Replayed(step, at_first=True)
        step = replayed

    cast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()

    def run(token: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), cast:
            # Always the same kind of tensor, or it is compiled a second time.
            token, memory = (x if x.is_inference() else x.clone() for x in (token, memory))
            logits, memory = step(token, memory)
        return logits, memory

    return run


def first_step_checked(fast: Step, exact: Step, otherwise: Callable[[], Step], tolerance: float) -> Step:
    """`fast`, if its first step is that of `exact`, up to `tolerance` of the largest value; if not, `otherwise()`."""
    chosen: Step | None = None

    def step(token: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal chosen
        if chosen is None:
            # The kernels of small products have been wrong before (docs/log.md).
            pairs = zip(fast(token, memory), exact(token, memory), strict=True)
            right = all(float((a - b).abs().max()) <= tolerance * float(b.abs().max()) for a, b in pairs)
            if not right:
                log.warning("compile: the step's fastest kernels are wrong at this size; taking slower ones")
            chosen = fast if right else otherwise()
        return chosen(token, memory)

    return step


def _stream(
    rnn: RNN,
    step: Step,
    prompt: Tensor,
    length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    memory: Tensor | None,
) -> Iterator[Tensor]:
    device = rnn.m_0.device
    generator = torch.Generator(device).manual_seed(seed)
    parts = list(rnn.modules())  # collected once: to walk the tree for every token costs a tenth of it
    # Entered around each piece of work, not the yields: the caller's own code must not run inside it.
    with torch.inference_mode(), evaluating(rnn):
        memory = rnn.init_memory(len(prompt)) if memory is None else memory.to(device)
        at_once = max(1, min(256, READ_AT_ONCE // max(1, memory.numel())))
        for part in prompt.to(device).split(at_once, 1) if prompt.shape[1] else ():
            memory = rnn.rollout(part, memory)[:, -1].clone()  # a view would keep the memories of every step
        logits = rnn.readout(memory).float()
    token: Tensor | None = None
    for number in range(length):
        mode = evaluating(rnn) if any(part.training for part in parts) else nullcontext()
        with torch.inference_mode(), mode:
            if token is not None:
                logits, memory = step(token, memory)
            token = _draw(logits, number, temperature, top_k, top_p, generator)
        yield token.clone()  # one that the caller may train on, which a tensor of inference mode is not


def _draw(logits: Tensor, number: int, *settings: Any) -> Tensor:
    """`sample`. Raises UserError where nothing can be drawn, after `number` tokens."""
    lost = UserError(f"run: the RNN's logits are not finite after {number} tokens of its own")
    try:
        token = sample(logits, *settings)
    except (RuntimeError, ValueError):
        if logits.is_cuda or logits.isfinite().all():  # a GPU that has failed answers no more
            raise
        raise lost from None
    # The likeliest of what is no number is a token, too.
    if not settings[0] and not logits.is_cuda and not logits.amax().isfinite():
        raise lost
    return token


def save_image_grid(tokens: Tensor, shape: tuple[int, int], levels: int, path: str | Path, columns: int = 8) -> None:
    """Write images as one grayscale PNG grid: tokens (B, H·W) of `levels` levels, brightest last.

    A negative token is a pixel that is not known; it has the colour of the gaps. Raises UserError where the file cannot
    be written.
    """
    from PIL import Image

    height, width = shape
    zoom, gap = max(1, 48 // max(height, width)), 4
    images = tokens.cpu().numpy().reshape(-1, height, width)
    images = np.where(images < 0, 64, images * 255 // max(levels - 1, 1)).astype(np.uint8)
    images = images.repeat(zoom, 1).repeat(zoom, 2)
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    cell_height, cell_width = height * zoom + gap, width * zoom + gap
    grid = np.full((rows * cell_height + gap, columns * cell_width + gap), 64, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * cell_height, gap + i % columns * cell_width
        grid[top : top + height * zoom, left : left + width * zoom] = image
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(path)
    except OSError as error:
        raise UserError(f"out: {path} cannot be written, {error.strerror or error}; name another --out") from error
