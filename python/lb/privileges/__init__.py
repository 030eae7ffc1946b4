"""What a privileged process may believe and keep: trusted files, giving up root, the broker that opens files for it."""
