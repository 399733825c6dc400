"""The network and the two-stage method: from a photograph's pixels to label maps."""
