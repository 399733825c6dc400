"""``python -m icnn.convert``: other data sets as a folder to train on."""
