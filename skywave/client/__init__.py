"""The edge: sensors into the outbox, the outbox to the server. Never imports ``skywave.server``."""
