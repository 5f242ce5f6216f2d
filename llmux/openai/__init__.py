"""What requests and answers say in the APIs of model servers; pure functions."""
