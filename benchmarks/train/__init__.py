"""Training, measured on real data and against a loop over ``transformers``' Llama: ``python -m benchmarks.train``."""
