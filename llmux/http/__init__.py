"""HTTP/1 and WebSocket syntax, URLs and sockets, for both sides; knows nothing of models."""
