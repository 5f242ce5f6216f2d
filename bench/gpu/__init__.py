"""Real vLLM servers on a machine with a GPU: switch times, first tokens, memory; see README.md."""
