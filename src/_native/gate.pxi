# gate.h for Python.
