"""Plain, frozen facts that evidence hands to probes (standard library only)."""
