"""What akocore shows of itself: metrics, health, logs and traces.

`observation.Observation` is the way in.  Nothing heavy is imported before it is switched on.
"""
