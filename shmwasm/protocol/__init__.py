"""The messages between the processes, as values: no socket, no clock, no lock."""
