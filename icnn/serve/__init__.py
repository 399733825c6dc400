"""``python -m icnn.serve``: serve a local web page that parses photographs."""
