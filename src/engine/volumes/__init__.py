"""What lies on a machine's disks: partitions, logical volumes, and what each of them holds.

Everything here is parsed from bytes that the guest controls, in Python, without the
kernel: no table, label or number is trusted.
"""
