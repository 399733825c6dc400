"""Training of the five networks, run with ``python -m icnn.train``."""
