"""Small programs that use agent_core."""
