"""Compare policies for several models awake within a memory budget."""
