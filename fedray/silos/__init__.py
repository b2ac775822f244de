"""Silos outside the cluster: a site's own process, the link to the federation's gateway, and what stands for the silo in the cluster."""
