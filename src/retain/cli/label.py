"""`retain label`: a language model's labels for a data set, made once for any number of runs."""

from __future__ import annotations

from pathlib import Path

from retain.cli.arguments import Usage, name_option, parse_count, take_option
from retain.cli.train import train_config
from retain.config.presets import PRESETS

HELP = """\
usage: retain label DATA --teacher.from M --out DIR [options]

Run a language model over a data set once, and store what training needs: hidden states in bfloat16, and the likeliest
tokens with their probabilities. `retain train PRESET --labels DIR` then needs no model. Run the same command again to
continue after a kill. Under torchrun or accelerate launch each process labels its share:
torchrun --nproc-per-node N -m retain label …

  DATA                 a file, a folder or hf:NAME, as for `retain train --data`; or a preset that includes its data
  --teacher.from M     the model: its folder for transformers, a .gguf file, hf:NAME, or a run folder of retain
  --out DIR            the folder to write
  --teacher.layer N    the layer whose hidden states are stored, counted from 1 (default: the last)
  --teacher.context-before N
                       the model also reads N tokens before each sequence, or up to twice as many, but only within the
                       same document (default: 0). In training the RNN starts from the memory after these tokens
  --teacher.top-k N    how many probabilities are stored at each position (default: 32)
  --data.seq-len N     T, tokens read per sequence (default: 64)
  --text-column C      the column of texts in a dataset (default: text)
  --data.prune-vocab   keep only those tokens of the vocabulary that the training split needs
  --batch-size N       sequences read at once (default: 16)
  --device D           auto, cpu, cuda or mps (default: auto)
  --precision P        auto, bf16 or fp32 (default: auto)
  --quiet              no progress bar
"""
READ = (
    *("--teacher.from", "--teacher.layer", "--teacher.top-k", "--teacher.context-before"),
    *("--text-column", "--device", "--precision", "--quiet"),
)
"""Options of `retain train` that apply to labels, besides those of the data."""


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
    from retain.training.label import make_labels

    manifest = make_labels(config, Path(out), parse_count({"batch-size": size}, "batch-size", 16), not quiet)
    if not manifest:  # only the main process has it
        return
    counts = ", ".join(f"{count:,} sequences of {split}" for split, count in manifest["splits"].items())
    print(f"{out}: {counts}, {sum(manifest['files'].values()):,} bytes\nnext: retain train PRESET --labels {out}")
