"""The launcher program: a warm, single-threaded interpreter that forks workers."""
