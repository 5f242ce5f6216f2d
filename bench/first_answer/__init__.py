"""How long the way from an installed program to a first answer is."""
