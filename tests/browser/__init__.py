"""The player page in a real browser, and its logic without one."""
