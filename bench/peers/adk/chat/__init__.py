"""The application that adk serves."""

from . import agent as agent  # adk looks for `chat.agent.root_agent`
