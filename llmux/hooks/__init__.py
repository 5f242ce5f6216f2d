"""Runs the user's hooks: a process group, a deadline and a log for each."""
