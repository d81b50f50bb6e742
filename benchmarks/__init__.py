"""How fast the kernels are, beside what a user would write instead. Never asserts a time."""
