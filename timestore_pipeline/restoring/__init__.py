"""Making a lost ledger again from the files of an installation."""
