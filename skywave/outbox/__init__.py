"""The edge's durable point: readings that no server has stored yet."""
