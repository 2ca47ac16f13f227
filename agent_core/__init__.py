"""The agent library: messages, events, loop, agent, tools, models; nothing of the server."""
