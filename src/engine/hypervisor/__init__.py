"""The machines that a replica can run on: one interface, one module for each hypervisor."""
