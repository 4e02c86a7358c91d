"""Conversion of weights between jaxrnn and other libraries, one module for each library.

Numpy alone is needed: no module here imports the library that it is about.
"""
