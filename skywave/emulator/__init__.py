"""Stand-ins for what Skywave connects: sensors (``sensor.py``) and whole fleets of clients (``fleet.py``)."""
