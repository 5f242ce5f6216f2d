"""`llmux import`: configs of llmux from those of llama-swap, and from what Ollama has.

llama_swap      reads a config of llama-swap
macros          its `${…}`
models          one of its models
matrix          its expressions for what may be awake together
coexistence     groups that allow nothing which it forbids
ollama          asks an Ollama for its models
draft           a config that is being made, with notes
writing         a draft as YAML with comments
command         the commands
"""
