"""The folder that `otelperf run` puts in front of PYTHONPATH, for what is in it to be imported by every Python."""
