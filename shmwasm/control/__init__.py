"""The coordinator's mind: pure decisions, events in, actions out. No I/O, no clock, no lock, no descriptor."""
