"""Reporting: logs, metrics, the journal, the event feed, and their schemas."""
