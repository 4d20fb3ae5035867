"""The estimator on users' tables: the benchmark of its defaults, and which inputs matter."""
