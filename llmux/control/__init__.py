"""The control API: what operators, the page and the terminal see and steer."""
