"""The broker: a CPU process that owns tasks, leases, verify jobs, scored groups and membership."""
