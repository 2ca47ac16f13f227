"""Ink stories: compile, check, keep and play them. Knows no agent, no database and no queue."""
