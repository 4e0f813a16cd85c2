"""What is measured, how, and the numbers: see docs/results.md, which `benchmarks.table` writes from `results/`.

    python -m benchmarks            about five minutes; prints its table, leaves the committed numbers alone
    python -m benchmarks --full     all of them, over an hour; rewrites results/, docs/results.md, the README's table

One file per benchmark, each a program of its own: `python -m benchmarks.kernels --help`.
"""
