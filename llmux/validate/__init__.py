"""`llmux validate`: checks that a model comes back from sleep as it was."""
