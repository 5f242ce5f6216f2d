"""`llmux doctor`: look at everything that makes requests hang, and say what to do.

`probes` gathers facts, within bounded time. `here` and `running` turn them into findings, without
any input or output of their own.
"""
