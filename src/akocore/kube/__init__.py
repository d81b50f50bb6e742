"""The Kubernetes API as typed data: just the fields that akocore uses."""
