"""``python -m icnn.evaluate``: score weights on faces with labels."""
