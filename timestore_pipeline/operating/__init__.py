"""What an operator does: quarantine, drain, audit, doctor, backup, losses, removal, identity."""
