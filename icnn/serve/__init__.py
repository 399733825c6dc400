"""``python -m icnn.serve``: a local page to parse photographs on."""
