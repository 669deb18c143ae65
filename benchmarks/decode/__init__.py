"""How fast, how lean and how exact decoding is, against its own parts and against ``transformers``.

``python -m benchmarks.decode --help``; what each figure is and how it is measured stands at the function of its name.
"""
