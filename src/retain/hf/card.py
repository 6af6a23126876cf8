"""The model card of an exported run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from retain.runs.checkpoint import find_run
from retain.runs.run import Run
from retain.runs.save import of_this_model

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- retain
- rnn
---

# {folder}

A recurrent network with a memory of {memory} numbers, whatever the length of the stream. It was trained with the
package `retain`, which implements [Supervised Memory Training](https://arxiv.org/abs/2606.06479).

## Use

```
pip install 'retain[hf]'
```

```python
import retain.hf  # registers the model; without it, pass trust_remote_code=True below
from transformers import AutoModelForCausalLM{import_tokenizer}

model = AutoModelForCausalLM.from_pretrained({folder!r})
{use}```

`outputs.cache` holds the memory. Pass it with the tokens that follow, `model(more, cache=outputs.cache)`, to continue
the stream exactly. `outputs.cache.get_recurrent_state(0)` is the memory, a tensor {shape} that you can save.
`model.make_cache(memory)` makes a cache from it.

{tokens}

## Training

{training}

## Scores

{scores}

## Fine-tuning

The model returns a loss for `labels`, so `transformers.Trainer` can fine-tune it. The gradient is that of
backpropagation through time over the whole sequence, whatever trained the run. Split long texts.

## Citation

```bibtex
@article{{kumar2026pretraining,
  title = {{Pretraining Recurrent Networks without Recurrence}},
  author = {{Kumar, Akarsh and Isola, Phillip}},
  journal = {{arXiv:2606.06479}},
  year = {{2026}}
}}
```
"""

WITH_TEXT = """\
tokenizer = AutoTokenizer.from_pretrained({folder!r})
inputs = tokenizer("It was", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=80, do_sample=True)[0], skip_special_tokens=True))
"""
WITHOUT_TEXT = """\
print(model.generate(max_new_tokens=80, do_sample=True))  # token numbers after the begin token
"""


def write_card(run: Run, folder: str, *, has_tokenizer: bool, command: str | None) -> str:
    """Return the model card of a run that is exported into a folder of this name and was trained by `command`."""
    vocab_size, end = run.state["vocab_size"], run.state.get("end")
    others = "subwords" if has_tokenizer else "numbers"
    what = {"text": "bytes of UTF-8", "image": "gray levels"}.get(run.state["kind"], others)
    tokens = f"Tokens 0 … {vocab_size - 1} are {what}"
    if end is not None:
        tokens += f" ({end} ends a document)"
    tokens += f". Token {vocab_size} is the begin token. It is also the padding, and is never predicted."
    return CARD.format(
        folder=folder,
        memory=run.rnn.m_0.numel(),
        shape=f"(B, {run.config.memory.tokens}, {run.config.memory.width})",
        import_tokenizer=", AutoTokenizer" if has_tokenizer else "",
        use=(WITH_TEXT if has_tokenizer else WITHOUT_TEXT).format(folder=folder),
        tokens=tokens,
        training=_training(run, command),
        scores=_scores(run),
    )


def _training(run: Run, command: str | None) -> str:
    config, state, progress = run.config, run.state, run.state["progress"]
    data, path = state["data"], config.longest_gradient_path
    checksum = next((value for key, value in data.items() if key.startswith("sha256")), None)
    source = str(data.get("path") or "")
    known = {
        "data": data.get("name") or "its author's own",
        "source": source if source.startswith("hf:") else Path(source).name,
        "SHA-256 of the data": checksum,
        "vocabulary": state["vocab_size"],
        "tokens per sequence": config.data.seq_len,
        "cell": f"{config.cell.kind}, {sum(p.numel() for p in run.rnn.parameters()):,} parameters with the readout",
    }
    if not state.get("own_data") or progress["step"]:
        known |= {
            "trained by": " then ".join(config.trained),
            "longest gradient path": f"{path} step{'s' * (path > 1)} of time",
            "budget": config.budget,
            "this model": f"step {progress['step']:,}, {progress['tokens']:,} tokens, {progress['seconds']:,.0f} s",
        }
    known["made by"] = ", ".join(f"{name} {version}" for name, version in state["versions"].items())
    known["on"] = f"{state['device']}, {state['precision']}"
    rows = "".join(f"| {key} | {value} |\n" for key, value in known.items() if value not in (None, ""))
    line = f"\n```\n{command}\n```" if command else "\nIt was trained in its author's own loop."
    return f"| | |\n| --- | --- |\n{rows}{line}"


def _scores(run: Run) -> str:
    rows: list[tuple[Any, ...]] = []
    for file in sorted(find_run(run.path).glob("eval-*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if of_this_model(found, run.state):
                row = file.stem.removeprefix("eval-"), found["seq_len"], found["bits_per_token"]
                rows.append((*row, found.get("bits_per_byte"), found["accuracy"], found["tokens"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # `retain info` says what is damaged
    validated = run.state["progress"]["best_value"]
    if not rows:
        if not math.isfinite(validated):
            return "Not scored yet."
        return f"Not scored on a test split yet. On sequences of the validation split: {validated:.3f} bits per token."
    head = "| split | tokens read from m_0 | bits per token | bits per byte | accuracy | targets |\n"
    head += "| --- | ---: | ---: | ---: | ---: | ---: |\n"
    return head + "\n".join(
        f"| {split} | {read} | {_number(bits)} | {_number(per_byte)} | {_number(accuracy)} | {targets:,} |"
        for split, read, bits, per_byte, accuracy, targets in rows
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
