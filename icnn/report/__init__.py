"""``python -m icnn.report``: compare training runs and write the report of one run."""
