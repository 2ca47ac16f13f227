"""What both sides need: settings, tables and SQL, events, the queue, errors."""
