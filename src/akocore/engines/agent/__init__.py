"""A Service Engine elsewhere: its agent, which runs Envoy and FRR, and what controllers tell it."""
