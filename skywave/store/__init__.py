"""The centre's durable point: ClickHouse or chDB, and the account of what is in it.

``delivery`` is what a server may do with it, ``accounts`` what may be asked, ``sql`` what the archive works with; ``store`` is
all three, and ``shards`` opens it.
"""
