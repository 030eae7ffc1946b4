"""What touches the network: sockets and frames on them, the kernel's tables, capture files."""
