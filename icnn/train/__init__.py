"""``python -m icnn.train``: train the five networks."""
