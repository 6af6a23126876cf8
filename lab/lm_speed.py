"""Compares tokens per second and memory of an RNN and of a language model with a key-value cache, by context length.

python -m lab.lm_speed MODEL RUN [--contexts 256,4096,65536] [--tokens 32] [--out docs/results/language-model-speed]

It writes OUT.json and the plot OUT.png. One stream is read token by token in float32. The cache is filled with random
keys and values, because the cost of a step does not depend on them, and reading 65,536 tokens would take hours on a
CPU. A model with learnt positions gets null for contexts beyond its length.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from retain.cli import one_line_errors
from retain.files import replace_file
from retain.model.rnn import RNN
from retain.plots import PALETTE, add_legend, new_figure, tidy_axes

CONTEXTS = (256, 4096, 65536)
OUT = Path("docs/results/language-model-speed")


def measure(model: Any, rnn: RNN, contexts: Sequence[int], tokens: int) -> list[dict[str, Any]]:
    """Measure both models after each number of tokens of context.

    Returns:
        JSON values: `context`, and for each model `tokens_per_second`, the `state_bytes` of a stream beside the
        weights, and `weight_bytes`. A language model with too few positions has null.
    """
    return [
        {"context": context, "model": time_model(model, context, tokens), "rnn": time_rnn(rnn, context, tokens)}
        for context in contexts
    ]


@torch.inference_mode()
def time_model(model: Any, context: int, tokens: int) -> dict[str, Any] | None:
    """Time the steps of a transformers language model with `context` tokens in its cache; None if it has no room."""
    from transformers import DynamicCache

    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    learnt = getattr(config, "rope_parameters", None) is None and getattr(config, "rope_theta", None) is None
    if learnt and positions is not None and context + tokens > positions:
        return None
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        keys, values = torch.randn(2, 1, heads, context, width).unbind(0)
        cache.update(keys, values, layer)
    takes = inspect.signature(model.forward).parameters
    given = {"cache" if "cache" in takes else "past_key_values": cache, "use_cache": True}  # `cache` in newer versions
    token = torch.zeros(1, 1, dtype=torch.long)

    def step() -> None:
        nonlocal token
        token = model(input_ids=token, **given).logits[:, -1:].argmax(-1)

    seconds = time_steps(step, tokens)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return {"tokens_per_second": 1 / seconds, "state_bytes": held, "weight_bytes": count_bytes(model)}


@torch.inference_mode()
def time_rnn(rnn: RNN, context: int, tokens: int) -> dict[str, Any]:
    """Time the steps of an RNN from its memory after `context` tokens."""
    rnn.eval()
    memory = rnn.init_memory(1)
    for part in torch.randint(rnn.vocab_size, (1, context)).split(256, 1):
        memory = rnn.rollout(part, memory)[:, -1].clone()
    token = torch.zeros(1, dtype=torch.long)

    def step() -> None:
        nonlocal token, memory
        logits, memory = rnn.step(token, memory)
        token = logits.argmax(-1)

    seconds = time_steps(step, tokens)
    return {"tokens_per_second": 1 / seconds, "state_bytes": memory.nbytes, "weight_bytes": count_bytes(rnn)}


def time_steps(step: Callable[[], None], count: int) -> float:
    """Return the median seconds of `count` steps, after two warm-up steps."""
    found = []
    for _ in range(2 + count):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return sorted(found[2:])[count // 2]


def count_bytes(module: Any) -> int:
    """Return the bytes of a module's weights."""
    return sum(weight.nbytes for weight in module.parameters())


def plot(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw speed and memory against context; return False if matplotlib is not installed."""
    figure = new_figure(path, 9, 3.5)
    if figure is None:
        return False
    panels = {"tokens_per_second": "tokens per second, one stream", "state_bytes": "bytes that a stream holds"}
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for colour, (who, name) in zip(PALETTE, (("rnn", "RNN"), ("model", "language model")), strict=False):
            known = [(row["context"], row[who][key]) for row in rows if row[who] is not None]
            axes.plot(*zip(*known, strict=True), marker="o", color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([row["context"] for row in rows], [f"{row['context']:,}" for row in rows])
        axes.set_xlabel("tokens of context")
        axes.set_ylabel(label)
        tidy_axes(axes)
        add_legend(axes)
    figure.savefig(path, dpi=100)
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.lm_speed", description=__doc__)
    parser.add_argument("model", help="a folder for transformers, a .gguf file or hf:NAME")
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)))
    parser.add_argument("--tokens", type=int, default=32, help="steps timed at each context")
    parser.add_argument("--out", type=Path, default=OUT, help="where OUT.json and OUT.png are written")
    args = parser.parse_args(argv)
    with one_line_errors():
        from retain.model.language_model import load_language_model
        from retain.runs.run import load

        contexts = [int(text) for text in args.contexts.split(",")]
        rows = measure(load_language_model(args.model), load(args.run), contexts, args.tokens)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        found = {"model": Path(args.model).name, "threads": torch.get_num_threads(), "rows": rows}
        replace_file(args.out.with_suffix(".json"), json.dumps(found, indent=1).encode() + b"\n")
        plot(rows, args.out.with_suffix(".png"))
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
