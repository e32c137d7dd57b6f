"""``timestore serve``: a real server process, asked by a real client."""
