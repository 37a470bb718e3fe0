"""The way of a guarded request: gate, probes, verdict, resends."""
