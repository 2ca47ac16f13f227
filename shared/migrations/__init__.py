"""The schema's history; `python -m shared.migrate` brings a database up to date."""
