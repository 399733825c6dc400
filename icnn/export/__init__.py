"""``python -m icnn.export``: export networks as ONNX files."""
