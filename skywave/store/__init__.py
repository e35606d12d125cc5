"""The centre's durable point: ClickHouse or chDB, and the account of what is in it."""
