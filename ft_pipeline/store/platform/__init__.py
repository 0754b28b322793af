"""What the platform remembers beside the catalog: tenants, keys, files, jobs, webhooks, usage, audit. The only SQL of the API."""
