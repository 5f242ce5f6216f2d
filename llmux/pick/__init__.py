"""`llmux pick`: tells Envoy which of several hosts should get a request.

A process of its own, under asyncio, since gRPC for Python runs on it. It needs the extra
`llmux-proxy[fleet]`.
"""
