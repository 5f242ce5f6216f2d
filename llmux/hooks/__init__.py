"""Run the user's shell hooks: a process group, a deadline and a log for each."""
