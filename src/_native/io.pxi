# io.h for Python.
