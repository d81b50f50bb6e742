"""FRR as the router of a Service Engine: VIPs are announced by BGP, failures found by BFD."""
