"""Samples of RNN and teacher next to the data: text, images, or a task's answers. All are JSON values."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.config import IGNORE
from retain.data import Data
from retain.inference.complete import save_image_grid
from retain.inference.generate import generate, sample
from retain.model.teacher import Teacher
from retain.report.analyses import SPLIT
from retain.runs.run import Run

PROMPT, LENGTH = 32, 240
"""Tokens of the prompt and of the sample, for text and other streams."""
SECONDS = 30.0
"""Time limit for the teacher, which reads its whole window again for each token."""


def sample_beside_data(run: Run, data: Data) -> dict[str, Any] | None:
    """Sample "answers", "images" or "text", the `kind`: `rows` or pictures of RNN, teacher (null if none) and data.

    Returns None for series (`retain forecast` samples those).
    """
    if data.kind == "numbers":
        return None
    if data.answers:
        return sample_answers(run, data)
    if data.kind == "image" and data.image_shape is not None:
        return sample_images(run, data)
    return sample_continuations(run, data)


def stream_teacher(
    teacher: Teacher, prompt: Tensor, length: int, window: int, temperature: float, seed: int
) -> Iterator[Tensor]:
    """Sample from the teacher's decoder after a prompt (B, P). Each memory is encoded from the last `window` tokens."""
    drawn = torch.Generator().manual_seed(seed)
    tokens = prompt
    for _ in range(length):
        with torch.inference_mode():
            read = tokens[:, -window:]
            memory = teacher.encode(read, torch.tensor([read.shape[1]]))[:, 0]
            token = sample(teacher.decoder(memory).float(), temperature, generator=drawn)
            tokens = torch.cat([tokens, token[:, None]], 1)
        yield token


def _sample_teacher(run: Run, prompt: Tensor, length: int, window: int, temperature: float) -> Tensor | None:
    """Sample (B, N) from the run's teacher; None without one, or if it takes more than SECONDS."""
    if run.teacher is None:
        return None
    start, found = time.perf_counter(), []
    for token in stream_teacher(run.teacher, prompt, length, window, temperature, 0):
        found.append(token)
        if time.perf_counter() - start > SECONDS:
            return None
    return torch.stack(found, 1)


def sample_continuations(run: Run, data: Data, count: int = 2, temperature: float = 0.7) -> dict[str, Any]:
    """Sample continuations of some validation sequences by RNN and teacher, next to the data's own."""
    length = min(LENGTH, 4 * data.seq_len)
    prompt_len = min(PROMPT, data.seq_len // 2)
    whole = torch.cat([b["targets"] for b in islice(data.windows(SPLIT, 64), 8)])
    # Windows of a stream follow each other, so several in a row are one longer piece.
    joined = 1 + (prompt_len + length) // whole.shape[1]
    starts = torch.linspace(0, max(0, len(whole) - joined), count).long().tolist()
    real = torch.stack([whole[s : s + joined].flatten()[: prompt_len + length] for s in starts])
    # The prompt is at most the first half of a short document: its end symbol and padding cannot be continued.
    shortest = int((real[:, : data.seq_len] != IGNORE).int().cumprod(1).sum(1).min())
    prompt_len = max(1, min(prompt_len, shortest // 2))
    prompt = real[:, :prompt_len].clamp_min(0)
    with torch.inference_mode():
        own = torch.stack(list(generate(run.rnn, prompt, length, temperature=temperature, seed=0)), 1)
    theirs = _sample_teacher(run, prompt, length, data.seq_len, temperature)
    rows = [
        {
            "prompt": data.decode(prompt[i].tolist()),
            "rnn": data.decode(own[i].tolist()),
            "teacher": None if theirs is None else data.decode(theirs[i].tolist()),
            "data": data.decode([token for token in real[i, prompt_len:].tolist() if token != IGNORE]),
        }
        for i in range(count)
    ]
    return {"kind": "text", "temperature": temperature, "rows": rows}


def sample_images(run: Run, data: Data, count: int = 24) -> dict[str, Any]:
    """Sample whole images without a prompt, as PNG data URIs."""
    shape = data.image_shape
    assert shape is not None
    pixels = shape[0] * shape[1]
    count = count if pixels <= 256 else 8
    empty = torch.zeros(count, 0, dtype=torch.long)
    drawn: dict[str, Tensor | None] = {
        "rnn": torch.stack(list(generate(run.rnn, empty, pixels, seed=0)), 1),
        "teacher": _sample_teacher(run, empty, pixels, data.seq_len, 1.0),
        "data": next(iter(data.windows(SPLIT, count, count)))["targets"],
    }
    pictures = {
        name: None if tokens is None else draw_grid(tokens, shape, data.vocab_size) for name, tokens in drawn.items()
    }
    return {"kind": "images", "temperature": 1.0, **pictures}


def draw_grid(tokens: Tensor, shape: tuple[int, int], levels: int) -> str:
    """Draw images as one PNG grid in a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        save_image_grid(tokens, shape, levels, path, columns=6)
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@torch.no_grad()
def sample_answers(run: Run, data: Data, count: int = 6) -> dict[str, Any]:
    """Return sequences of a task, each with its last right answer and those of RNN and teacher."""
    batch = next(iter(data.windows(SPLIT, count, count)))
    tokens, targets = batch["tokens"], batch["targets"]
    m_0 = run.rnn.init_memory(len(tokens))
    memory = torch.cat([m_0[:, None], run.rnn.rollout(tokens, m_0)], 1)
    own = run.rnn.readout(memory).float().softmax(-1)  # (B, T + 1, V)
    theirs = None if run.teacher is None else run.teacher.decoder(run.teacher.encode(tokens)).float().softmax(-1)

    task = getattr(data, "task", None)  # a user's own data has no names
    words, replies = (task.words, task.answers) if task else ((), ())

    def answer(probabilities: Tensor | None, i: int, t: int) -> str | None:
        if probabilities is None:
            return None
        likeliest = int(probabilities[i, t].argmax())
        return f"{name_token(likeliest, replies)} ({float(probabilities[i, t, likeliest]):.0%})"

    rows = []
    for i in range(len(tokens)):
        asked = (targets[i] != IGNORE).nonzero()
        if not len(asked):  # a short stack may never be popped
            continue
        t = int(asked[-1])
        right = name_token(int(targets[i, t]), replies)
        read = " ".join(name_token(token, words) for token in tokens[i, :t].tolist())
        rows.append({"prompt": read, "rnn": answer(own, i, t), "teacher": answer(theirs, i, t), "data": right})
    return {"kind": "answers", "rows": rows}


def name_token(token: int, names: Sequence[str]) -> str:
    """Return a token's name, or its number if it has none."""
    return names[token] if token < len(names) else str(token)
