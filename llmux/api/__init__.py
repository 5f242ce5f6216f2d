"""llmux's own paths: public lists and health, the control API, the operator page."""
