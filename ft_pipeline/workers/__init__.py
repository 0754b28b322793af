"""Where a job runs: a local child process now, a Kubernetes Job with the same job.json, the same `main` and the same exit codes.

In: a Job. Out: an Outcome, and messages while it runs. Imports no room.
"""
