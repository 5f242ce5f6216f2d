"""Measurements: `python -m bench.proxy` and `python -m bench.switch` print one table each."""
