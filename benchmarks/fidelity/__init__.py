"""How true the gate is, and at what price, beside scrapes at fixed intervals: docs/fidelity.md."""
