"""Trials of a training run under faults: real processes, real kills, real files.

    python -m tests.stress [--jobs N] [--only kill,signals,…] [--share 0.1]

runs the full form and prints one JSON object; `test_faults.py` is a short form for the default
suite.
"""
