"""What makes a Service Engine do what the model says."""
