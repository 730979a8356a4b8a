"""The real programs that otelperf works with: how to get them, start them and ask them."""
