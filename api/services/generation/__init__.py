"""Generating: a request is checked whole before it is queued, and what the engine says of it becomes OpenAI's shapes."""
