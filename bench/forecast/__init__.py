"""How far off the expected waits are, simulated and live: `python -m bench.forecast`."""
