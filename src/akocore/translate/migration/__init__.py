"""Ingresses → Gateways and HTTPRoutes that answer the same, with a word on all that is lost."""
