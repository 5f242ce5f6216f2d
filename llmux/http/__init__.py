"""HTTP/1 and WebSocket syntax, URLs and sockets; nothing here knows of models."""
