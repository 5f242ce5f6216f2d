"""The hooks of `hooks/`, each folder alone, run by `sh` against stand-ins of what they steer."""
