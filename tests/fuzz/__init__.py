"""Objects that a machine makes up from the published schemas, through all of akocore."""
