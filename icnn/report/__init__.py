"""``python -m icnn.report``: compare runs; the page of one run."""
