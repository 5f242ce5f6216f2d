"""Ways to choose among hosts, compared by simulation."""
