"""The kernels: closed loops over buffers, compiled. Their plain twins are in tests/reference."""
