"""``python -m icnn.synthetic``: drawn faces with exact labels."""
