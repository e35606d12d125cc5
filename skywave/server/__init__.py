"""The centre: batches from the broker into ClickHouse, acknowledgements back. Never imports ``skywave.client``.

A message goes from ``subscriber`` through ``inbox`` to ``ingest``: ``admission``, ``inserting``, ``recording``, the answer.
"""
