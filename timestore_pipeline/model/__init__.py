"""The words of the design that need nothing else: columns, windows, durations, places of files, names, time."""
