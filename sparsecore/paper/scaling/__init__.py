"""Speed-up per worker, measured and simulated."""
