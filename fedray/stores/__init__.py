"""Object stores: where ledgers and the files of a run may lie."""
