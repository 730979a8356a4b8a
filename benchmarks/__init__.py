"""Measurements that anybody can repeat; docs/footprint.md quotes them."""
