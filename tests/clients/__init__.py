"""Real client packages against a real llmux process with stand-ins behind it."""
