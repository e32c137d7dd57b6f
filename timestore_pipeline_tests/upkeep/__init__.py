"""What keeps disk, table and ledger small."""
