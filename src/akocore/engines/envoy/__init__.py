"""Envoy as Service Engine: processes, resources as bytes, and delta xDS over one stream."""
