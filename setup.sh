#!/usr/bin/env bash
# Builds the Docker testbed. Not in this version: the same hosts are there in network namespaces.
echo "setup.sh: the Docker testbed is not in this version; run: lb testbed up" >&2
exit 1
