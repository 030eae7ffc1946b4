# The image of the Docker testbed is not in this version. `lb testbed up` builds the same hosts in network namespaces.
