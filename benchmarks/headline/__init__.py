"""Public alert rules and boards, unmodified, on a real vLLM: a dense scrape, a 15 s scrape, and otelperf under native names."""
