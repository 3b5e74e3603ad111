"""The answers as JSON: one pydantic model a shape, the same over HTTP, with `--json`, and in the client. Knows no store."""
