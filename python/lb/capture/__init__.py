"""Captures through a backend, offline: reading and writing pcap files, and `lb replay`."""
