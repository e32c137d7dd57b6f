"""Processes killed, stopped and ended at every step, broken disks, damaged files: every row is counted after each."""
