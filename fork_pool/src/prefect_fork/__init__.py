"""Flow runs at a fraction of the price: in one process each, or forked off a loaded one."""
