"""What runs in the process: composition, listening, signals, the state lock and the orderly end."""
