#!/bin/sh
# Hadoop's `hdfs` command, as far as the stand uses it, on the shaded jars.
set -eu

command="$1"
shift
case "$command" in
    namenode) main=org.apache.hadoop.hdfs.server.namenode.NameNode ;;
    datanode) main=org.apache.hadoop.hdfs.server.datanode.DataNode ;;
    dfs) main=org.apache.hadoop.fs.FsShell ;;
    *) echo "hdfs $command is not here" >&2; exit 1 ;;
esac
exec java -Xmx"${HADOOP_HEAPSIZE_MAX:-256m}" --add-opens java.base/java.lang=ALL-UNNAMED \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "/opt/hadoop/etc/hadoop:/opt/hadoop/lib/*" "$main" "$@"
