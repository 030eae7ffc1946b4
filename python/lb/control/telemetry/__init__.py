"""What the daemon tells others: metrics, flow log, logs, rates."""
