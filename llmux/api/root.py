"""The page at the root."""

from __future__ import annotations

PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}


def root_page(more: str) -> str:
    """Return the page at the root; `more` is HTML."""
    return f"<!doctype html><title>llmux</title><p>llmux is running{more}\n"
