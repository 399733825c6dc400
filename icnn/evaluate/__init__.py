"""``python -m icnn.evaluate``: evaluate weights on annotated faces."""
