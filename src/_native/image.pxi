# image.h for Python.
