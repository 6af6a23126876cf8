"""`retain info`: what a run folder holds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from retain.cli.arguments import take_run
from retain.errors import UserError


@dataclass(frozen=True)
class Info:
    """Show what a run folder holds: config, data, progress and results."""

    json: bool = False
    """Print as JSON."""


def info_command(argv: list[str]) -> None:
    """Run `retain info`."""
    path, args = take_run(argv, "info", Info)
    from retain.config.json import to_dict
    from retain.runs.folder import finished
    from retain.runs.run import load_run
    from retain.runs.save import of_this_model

    run = load_run(path)
    results, scores = {}, {}
    for file in sorted(path.glob("eval-*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            current = of_this_model(found, run.state)
            results[file.stem] = found | {"current": current}
            scores[file.stem] = found["bits_per_token"], found["accuracy"], current
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{file}: is damaged ({error}); delete it, or run retain eval again") from None
    state = {k: v for k, v in run.state.items() if k != "optimizer"}
    validated = math.isfinite(state["progress"]["best_value"])
    if not validated:
        state["progress"] = state["progress"] | {"best_value": None}  # JSON has no infinity
    info = {
        "run": str(path),
        "finished": finished(path),
        "parameters": sum(p.numel() for p in run.rnn.parameters()),
        "memory": [run.config.memory.tokens, run.config.memory.width],
        "longest_gradient_path": run.config.longest_gradient_path,
        **state,
        "results": results,
        "config": to_dict(run.config),
    }
    if args.json:
        print(json.dumps(info, indent=2))
        return
    c, p = run.config, state["progress"]
    whole = "finished" if info["finished"] else "not finished"
    made = ", ".join(f"{k} {v}" for k, v in state["versions"].items())
    layers = 1 if c.teacher.encoder == "store" else c.teacher.layers
    teacher = f"{c.teacher.encoder} encoder, width {c.teacher.width}, {layers} layer{'s' * (layers > 1)}"
    if c.teacher.from_ is not None:
        how = "frozen" if c.teacher.trunk_lr is None else "trained in SMT"
        teacher = f"reads with {c.teacher.from_}, {how}" + (f", from {c.teacher.labels}" if c.teacher.labels else "")
    reads = f"vocabulary {state['vocab_size']}"
    if run.rnn.channels is not None:
        reads = f"{', '.join(run.rnn.channels.names)}, head {run.rnn.channels.head}"
    norm = "not normalised" if c.memory.norm == "none" else f"{c.memory.norm} normalised"
    if c.memory.norm == "fsq":
        bits = c.memory.tokens * c.memory.width * math.log2(c.memory.levels)
        norm = f"numbers of {c.memory.levels} levels (fsq), {bits:,.0f} bits"
    lines = [
        f"{path}: {c.preset or 'custom'}, {' then '.join(c.trained)}, {whole}",
        f"  data      {state['data'].get('name')}, {reads}, T = {c.data.seq_len}",
        f"  RNN       {c.cell.kind} cell, {info['parameters']:,} parameters",
        f"  memory    {c.memory.tokens} x {c.memory.width}, {norm}",
        f"  gradient  through at most {c.longest_gradient_path} step{'s' * (c.longest_gradient_path > 1)} of time",
        f"  teacher   {teacher}",
        f"  model     step {p['step']}, after {p['seconds']:.0f} s and {p['tokens']:,} tokens; "
        + (f"validation {p['best_value']:.3f} bits/token" if validated else "not validated yet"),
        f"  made by   {made}, {state['precision']} on {state['device']}",
    ]
    print("\n".join(lines))
    for name, (bits, accuracy, current) in scores.items():
        of = "" if current else "   (of an earlier model: score it again)"
        right = "" if accuracy is None else f", accuracy {accuracy:.3f}"
        print(f"  {name}   {'no finite' if bits is None else f'{bits:.3f}'} bits/token{right}{of}")
