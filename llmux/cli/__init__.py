"""The command line: `llmux serve`, `check` and the commands that talk to a running llmux."""
