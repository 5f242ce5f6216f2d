"""What every other package may stand on: names, patterns and files."""
