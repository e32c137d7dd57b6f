"""Work under faults, for long; then every row is counted. All choices come from one printed seed.

``coordinator`` lets many processes stage, ingest, build, recover and read at once, and kills them at random: the
operating system's scheduling is its own, so two runs of a seed are alike but not equal. ``rounds`` lets one fault after
the other happen to an installation, of every kind that ``faults`` has; ``run`` does that until there were so many, with
a crowd of processes among the rounds.
"""
