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
    """Measure the rows named on the command line, and write them to the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The speed of SMT, as ratios.")
    parser.add_argument("rows", nargs="*", help=f"rows to measure, of {', '.join(ROWS)} (default: all)")
    args = parser.parse_args(argv)
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"rows: {', '.join(sorted(unknown))} not among {', '.join(ROWS)}")
    logging.basicConfig(format="%(message)s")
    found = {}
    for name in args.rows or ROWS:
        start = time.perf_counter()
        found[name] = ROWS[name]()
        print(f"{name}: {found[name].reached:.2f}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        save(found)  # at once, so that an interrupted benchmark keeps its rows
    print(lines({name: dataclasses.asdict(row) | {"met": row.met} for name, row in found.items()}), end="")
    print(f"\nwritten to {PAGE}")


if __name__ == "__main__":
    main()
