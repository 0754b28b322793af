"""A job as a Kubernetes Job: same job.json, same `main`, same exit codes as a child process of this machine.

In: a Job, its Placement, the Profile of a cluster. Out: the artifact in the store, which alone is proof. Core API only.
"""
