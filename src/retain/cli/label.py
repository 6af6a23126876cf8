"""`retain label`: labels of a language model for a data set, made once and kept for any number of runs."""

from __future__ import annotations

from pathlib import Path

from retain.cli.arguments import Usage, name_option, parse_count, take_option
from retain.cli.train import train_config
from retain.config.presets import PRESETS

HELP = """\
usage: retain label DATA --teacher.from M --out DIR [options]

Run a language model over a data set once, and keep what training needs: hidden states in bfloat16, and the likeliest
tokens with their probabilities. `retain train PRESET --labels DIR` then does without the model. Killed at any moment,
the same command goes on.

  DATA                 a file, a folder or hf:NAME, as of `retain train --data`; or a preset that brings its data
  --teacher.from M     the model's folder for transformers, a .gguf file, hf:NAME, or a run folder of ours
  --out DIR            the folder to write
  --teacher.layer N    the layer whose hidden states are kept, from 1 on (default: the last)
  --teacher.top-k N    so many probabilities are kept at each place (default: 32)
  --data.seq-len N     T, tokens read per sequence (default: 64)
  --text-column C      the column of texts in a dataset (default: text)
  --data.prune-vocab   keep only those symbols that the training split needs
  --batch-size N       sequences read at once (default: 16)
  --device D           auto, cpu, cuda or mps (default: auto)
  --precision P        auto, bf16 or fp32 (default: auto)
  --quiet              no progress bar
"""
READ = ("--teacher.from", "--teacher.layer", "--teacher.top-k", "--text-column", "--device", "--precision", "--quiet")
"""Options of `retain train` that say something of labels, besides those of the data."""


def label_command(argv: list[str]) -> None:
    """Run `retain label`."""
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return
    if not argv or argv[0].startswith("-"):
        raise Usage("retain label: name the data first, as in: retain label book.txt --teacher.from MODEL --out labels")
    source, argv = argv[0], argv[1:]
    out, argv = take_option(argv, "--out")
    size, argv = take_option(argv, "--batch-size")
    for word in argv:
        name = name_option(word)
        if word.startswith("--") and name not in READ and not name.startswith("--data."):
            raise Usage(f"{name}: retain label does not take it; leave it out (see retain label --help)")
    if out is None:
        raise Usage("out: name the folder of the labels, as in --out labels")
    if not any(name_option(word) == "--teacher.from" for word in argv):
        raise Usage("teacher.from: name the model that labels the data, as in --teacher.from MODEL")
    data = [source] if source in PRESETS else ["text", "--data", source]
    config, _, _, quiet = train_config([*data, *argv, "--out", out])
    from retain.inference.label import make_labels

    manifest = make_labels(config, Path(out), parse_count({"batch-size": size}, "batch-size", 16), not quiet)
    counts = ", ".join(f"{count:,} sequences of {split}" for split, count in manifest["splits"].items())
    print(f"{out}: {counts}, {sum(manifest['files'].values()):,} bytes\nnext: retain train PRESET --labels {out}")
