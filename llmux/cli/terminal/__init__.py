"""The terminal: what operators type to see and steer a llmux that runs."""
