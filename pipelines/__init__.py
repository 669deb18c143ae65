"""Prefect flows over DVC's graph: the only place that knows Prefect, and the only code that knows DVC."""
