"""A module of agents that can't be imported, for a reason that is none of our own errors."""

raise ValueError("these agents are broken")
