"""The walkthrough's network on one machine: a client, a router, Service Engines, pods."""
