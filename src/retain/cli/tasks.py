"""`retain tasks`: the memory tasks, with a line and a sample each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from retain.cli.arguments import parse
from retain.config import IGNORE, TaskDataConfig


@dataclass(frozen=True)
class Tasks:
    """List the memory tasks: what each is, its fields, and a small sample with the answers below."""

    json: bool = False
    """Print as JSON."""


def tasks_command(argv: list[str]) -> None:
    """Run `retain tasks`."""
    args = parse(Tasks, argv, "retain tasks")
    from retain.data.tasks import TASKS

    described = [describe(name) for name in TASKS]
    if args.json:
        print(json.dumps(described, indent=2))
        return
    for task in described:
        size = f"vocabulary {task['vocab_size']}, chance {task['chance']:.3f}"
        print(f"{task['name']}: {task['summary']} ({size})")
        knobs = ", ".join(f"data.{name} ({task['size'][name]})" for name in task["harder_by"])
        print(f"  harder by  {knobs}")
        reads, answers = task["sample"]["reads"], task["sample"]["answers"]
        widths = [max(len(r), len(a or "")) for r, a in zip(reads, answers, strict=True)]
        for label, row in (("reads", reads), ("answers", answers)):
            line = " ".join((word or "·").ljust(width) for word, width in zip(row, widths, strict=True))
            print(f"  {label:<9}  {line.rstrip()}")
        print()
    print("Defaults are in brackets. data.label_noise makes any task harder.")
    print(f"Train on one: retain train {described[0]['name']}. What each field means: retain tasks --json")


def describe(name: str) -> dict[str, Any]:
    """Return a task at its default size, and a sample at a small one.

    `reads` has the names of the tokens x_0 …, and `answers` the answer after each, y_1 …, None if there is none.
    """
    from retain.data.batches import make_generator
    from retain.data.tasks import TASKS, build_task

    task = build_task(TaskDataConfig(name=name))
    small = TASKS[name](**task.example)
    tokens, targets = (rows[0].tolist() for rows in small.generate(make_generator(0, 0), 1))
    return {
        "name": name,
        "summary": task.summary,
        "vocab_size": task.vocab_size,
        "seq_len": task.seq_len,
        "chance": task.chance,
        "harder_by": dict(task.knobs),
        "size": {name: getattr(task, name) for name in task.knobs},
        "sample": {
            "size": dict(task.example),
            "tokens": tokens,
            "targets": targets,
            "reads": [small.words[t] for t in tokens],
            "answers": [None if t == IGNORE else small.answers[t] for t in targets[1:]],
        },
    }
