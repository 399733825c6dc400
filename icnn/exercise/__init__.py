"""``python -m icnn.exercise``: write the kernels of the network yourself, and find planted bugs."""
