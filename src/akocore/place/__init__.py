"""Decisions that must be remembered: addresses, shards, creation times."""
