"""The seed of a fuzz run: random, printed at its head, and in the message of every failure."""

from fuzzing import BUDGET, SEED


def pytest_report_header():
    return f"fuzz: {BUDGET} inputs, PARITY_FUZZ_SEED={SEED}"
