"""A chat server as textbooks have it: FastAPI, Celery's forked workers, litellm, Redis pub/sub.

It is what Fireside is measured against: a task that dies is lost or answered twice, each forked
process answers one message at a time, and nobody may ask twice.
"""
