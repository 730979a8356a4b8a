"""What OpenTelemetry has no instrumentation of: each module here has ``instrument(**providers)`` and ``uninstrument()``.

They record by ``otelperf.calls``, never what was asked or answered, and pass on whatever the library returns or raises.
"""
