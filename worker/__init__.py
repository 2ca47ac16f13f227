"""The Celery worker: claims a session, rebuilds its agent, runs it and writes what came of it."""
