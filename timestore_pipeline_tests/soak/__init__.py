"""Many processes that stage, ingest, build, recover and read at once, killed at random; then every row is counted.

``make soak`` runs it for long, a test for seconds. All choices come from one printed seed: what each process does,
how long it lives, and where it dies. The operating system's scheduling does not, so two runs of a seed are alike but
not equal.
"""
