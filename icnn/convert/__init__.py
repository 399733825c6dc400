"""``python -m icnn.convert``: convert other data sets to the training layout of Smith et al."""
