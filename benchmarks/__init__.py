"""`make bench`: the speed of SMT on this machine, as ratios in docs/benchmarks.md, with separate tables by device.

The two sides of a row run alternately in one process, so that other load on the machine affects both alike. The ratio
is that of their median times. `python -m benchmarks ROW...` measures only some rows.
"""
