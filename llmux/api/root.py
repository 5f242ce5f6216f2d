"""The page at the root."""

from __future__ import annotations

PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}


def root_page(*, has_page: bool) -> str:
    """Return the page at the root.

    Args:
        has_page: True if `/ui` is on this listener.
    """
    # The link is relative, so that it works behind a proxy's prefix.
    link = ' Its page: <a href="ui/">/ui</a>.' if has_page else ""
    return f"<!doctype html><title>llmux</title><p>llmux is running.{link}\n"
