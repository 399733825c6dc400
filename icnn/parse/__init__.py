"""``python -m icnn.parse``: label the faces of photographs."""
