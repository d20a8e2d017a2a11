# journal.h for Python.
