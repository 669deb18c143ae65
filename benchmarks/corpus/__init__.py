"""How fast the data stages are, and what a killed run costs (``python -m benchmarks.corpus``)."""
