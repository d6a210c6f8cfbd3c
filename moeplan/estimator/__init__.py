"""From a table of candidates to memory, time and throughput. NumPy only: no pydantic, no Optuna, no files."""
