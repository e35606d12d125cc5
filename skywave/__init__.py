"""Skywave carries sensor readings from edge hosts into ClickHouse and HDFS without losing or doubling one.

Read the package in the order in which a reading travels: ``emulator/sensor.py`` (where it is born),
``client/sensors.py``, ``client/intake.py``, ``client/outbox.py``, ``client/uplink.py`` (the edge),
``server/subscriber.py``, ``server/ingest.py``, ``server/store.py`` (the centre), ``audit.py`` (the proof).
``frames.py``, ``batch.py``, ``messages.py`` and ``topics.py`` are the formats that both sides share.
"""

__version__ = "0.1.0"
