"""Benchmarks and long runs; each module that can be run says in its docstring what it measures."""
