"""The plain twins of the kernels: the shortest correct Python, never fast."""
