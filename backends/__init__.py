"""The backends: each lowers a module to files that a real runtime loads."""
