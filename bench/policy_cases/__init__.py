"""The cases of `bench.policies`: kinds of traffic, and the policies that each is run under."""
