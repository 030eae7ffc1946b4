"""TOML files of any kind: from bytes to a validated model, or every error with its place in the file."""
