"""Decides which model of a group is awake: admission, queues, switches, reloads and health."""
