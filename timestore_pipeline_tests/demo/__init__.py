"""The demo's parts: what it sends, and how it finds out whether a row is missing."""
