"""A model request's journey from its head to the last byte of its answer."""
