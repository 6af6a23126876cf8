"""`make bench`: how fast SMT is here, as ratios; written to docs/benchmarks.md, CPUs and GPUs apart.

Two sides of a row run in turns in one process, so that whatever else the machine does falls on both alike, and the
ratio is that of their medians. `python -m benchmarks ROW...` measures some rows only.
"""
