"""The simulation: the real API server, controllers and scheduler on a clock that jumps, with model nodes and faults."""
