"""The gate: what has not moved is not sent. It imports nothing of the rest of otelperf and works alone."""
