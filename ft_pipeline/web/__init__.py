"""web. In: HTTP. Out: the OpenAI-compatible API over the same rooms (jobs, files and tenants come with the platform API)."""
