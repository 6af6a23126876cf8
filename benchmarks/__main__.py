"""`python -m benchmarks [ROW...]`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time

from benchmarks.page import PAGE, lines, save
from benchmarks.rows import ROWS


def main(argv: list[str] | None = None) -> None:
    """Measure the rows that the command line names, and write them to the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="How fast SMT is here, as ratios.")
    parser.add_argument("rows", nargs="*", help=f"some of {', '.join(ROWS)}; all by default")
    args = parser.parse_args(argv)
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"rows: {', '.join(sorted(unknown))} not among {', '.join(ROWS)}")
    logging.basicConfig(format="%(message)s")
    found = {}
    for name in args.rows or ROWS:
        start = time.perf_counter()
        found[name] = ROWS[name]()
        print(f"{name}: {found[name].reached:.2f}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        save(found)  # at once: a bench that is stopped keeps what it has
    print(lines({name: dataclasses.asdict(row) | {"met": row.met} for name, row in found.items()}), end="")
    print(f"\nwritten to {PAGE}")


if __name__ == "__main__":
    main()
