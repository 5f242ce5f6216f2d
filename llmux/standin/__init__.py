"""A model server without a model, for demos, tests and benchmarks.

`python -m llmux.standin` runs it (`cli.py`), and has the helpers that hooks need to drive it or a
real vLLM: `stop`, `wait` and `call`. Nothing in llmux imports this package.
"""
