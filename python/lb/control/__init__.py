"""
The control side: the running balancer (`process`, `daemon`), its data path (`runtime`), changes (`controller`,
`changes`, `reload`), background work (`tasks`, `housekeeping`, `health`), figures (`telemetry`) and the admin API
(`api`).
"""
