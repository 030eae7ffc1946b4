"""Sockets, frames, neighbours, capture files: where packets enter and leave."""
