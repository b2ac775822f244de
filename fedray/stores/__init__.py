"""Object stores: the address type, the one client, and the mirror of a run's files."""
