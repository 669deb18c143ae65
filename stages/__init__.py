"""One module per DVC stage: parameters and paths in, out folders and figures out, one MLflow run each."""
