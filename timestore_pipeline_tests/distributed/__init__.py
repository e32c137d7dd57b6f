"""Tests of runs on several hosts: Celery workers, hosts that are cut off, and what Kubernetes is told."""
