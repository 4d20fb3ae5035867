"""Training runs: conditions, results, figures and tables."""
