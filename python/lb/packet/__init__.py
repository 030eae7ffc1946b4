"""Reading and writing packets in plain Python: headers, checksums, hashing, rewriting. All values in host order."""
