"""Skywave carries sensor readings from edge hosts into ClickHouse and HDFS without losing or doubling one.

Read the package in the order in which a reading travels: ``emulator/sensor.py`` (where it is born),
``client/sensors.py``, ``client/intake.py``, ``outbox/outbox.py``, ``client/uplink.py`` (the edge), ``mqtt/link.py``,
``server/subscriber.py``, ``server/ingest.py``, ``server/inserting.py``, ``store/delivery.py``, ``store/store.py``
(the centre), ``store/accounts.py``, ``store/audit.py`` (the proof).
``formats/`` is what both sides share. docs/architecture.md shows the rooms and the arrows between them.
"""

__version__ = "0.1.0"
