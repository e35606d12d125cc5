"""The whole system on one host, for a newcomer's first minute."""
