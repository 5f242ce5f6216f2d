"""The APIs of model servers: model names in requests, answers, streams and errors; no I/O."""
