"""The loader, measured on a generated corpus: ``python -m benchmarks.loader``."""
