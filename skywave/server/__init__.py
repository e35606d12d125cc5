"""The centre: batches from the broker into ClickHouse, acknowledgements back. Never imports ``skywave.client``."""
