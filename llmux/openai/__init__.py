"""Reading and writing the APIs of model servers: names in requests, answers, errors; pure."""
