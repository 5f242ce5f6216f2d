"""Names, patterns and files, for all other packages."""
