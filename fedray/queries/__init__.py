"""Statistics of the clients' records, noised at each client and charged to the ledgers that training charges (``fedray query``)."""
