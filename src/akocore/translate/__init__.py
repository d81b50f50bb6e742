"""Pure functions from objects to the model; every refusal is a value."""
