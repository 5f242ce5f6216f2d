"""The terminal: commands that watch and control a running llmux."""
