"""Measure llmux against nginx, HAProxy and Hypercorn: `python -m bench.proxy`.

All contestants run on one core, in front of one backend; the backend and the load have other cores.
Contestants alternate within each round, so that other work on the machine affects all of them
alike. Figures are medians over the rounds, ratios are medians of each round's ratio.
"""
