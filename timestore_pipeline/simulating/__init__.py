"""What other thresholds would do, from the history that the ledger has."""
