"""Ways to choose among hosts, compared with a real Envoy in front of real llmux."""
