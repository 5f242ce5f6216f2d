"""A small model server without a model, for demos, tests and benchmarks."""
