"""How policies are measured: controlled runs, fixed references, a benchmark, its statistics."""
