"""Interlinked convolutional neural networks for face parsing (Zhou, Hu and Zhang)."""
