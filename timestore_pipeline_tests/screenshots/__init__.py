"""``make screenshots``: the pictures of ``docs/ui.md``, taken from the demo in headless Chromium."""
