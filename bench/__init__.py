"""Load scripts and measurements; each prints one table, with versions and machine."""
