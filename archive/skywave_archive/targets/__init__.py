"""Where an archive lies: a local folder or HDFS."""
