"""Which model of a group is awake: admission, the line, the switch, reloads and health."""
