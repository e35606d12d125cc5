#!/bin/sh
# A NameNode that formats an empty volume, and only an empty one.
set -eu

[ -e /data/name/current/VERSION ] || hdfs namenode -format -nonInteractive
exec hdfs namenode
