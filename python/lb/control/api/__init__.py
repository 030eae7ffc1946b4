"""The control socket, both ends: listener and handlers in the daemon; client and rendering in the commands."""
