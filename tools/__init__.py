"""Data, training, evaluation and benchmarks. Run from a clone: `python -m tools.train --help`."""
