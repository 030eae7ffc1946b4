"""Health checks: probing, passive checks, and the verdicts that follow from both."""
