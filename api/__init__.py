"""The gateway: HTTP, WebSocket and the player page; it accepts actions and relays events."""
