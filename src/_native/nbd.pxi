# nbd.h for Python.
