"""Gateway API v1: classes, listeners, attachment and rules, as pure functions."""
