"""What other servers run when we are measured beside them: an agent that answers with one call."""
