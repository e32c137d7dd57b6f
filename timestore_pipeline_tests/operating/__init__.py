"""Quarantine, drain, audit, losses, removal, places and identities."""
