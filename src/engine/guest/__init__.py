"""Making a guest bootable on other hardware: what it is, and what has to change in it.

Works on a GuestTree alone, runs nothing of the guest, and records every change.
"""
