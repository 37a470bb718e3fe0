"""Pure decisions: what a 404 means, who wrote it, how long to wait. No I/O, no clock."""
