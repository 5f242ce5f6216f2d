"""What llmux tells of itself: logs, metrics, the journal, the event feed and their schemas."""
