"""``python -m icnn.export``: networks as ONNX files."""
