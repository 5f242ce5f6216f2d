"""The process: composition, listening, signals, the state lock and the orderly end."""
