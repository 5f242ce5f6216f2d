"""`llmux validate`: check that a model answers after sleep as it did before."""
