"""Types of values that people write in files: what each accepts, and what it says about anything else."""
