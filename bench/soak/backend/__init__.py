"""A stand-in model server for `bench.soak`: a process that holds a GPU, and misbehaves when asked.

The GPU is a file that the server locks for as long as it lives; a server that finds it locked was
woken beside another one. The `x-soak` header of a request says how the server is to treat it;
requests of hostile clients have none. The server reports each request that llmux should have
refused.

Only the standard library, and few modules of it: a wake hook starts this program and waits for it.
"""
