"""The only place with SQL. One function is one transaction; nothing here calls a model or Redis."""
