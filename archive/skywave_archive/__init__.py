"""Skywave's archive: every closed day of the store in HDFS or a folder, proven by digest, and back into any store."""
