"""What keeps disk, table and ledger small: each kind of garbage is found, and removed."""
