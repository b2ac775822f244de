"""Sources, partitioners, the federated dataset."""
