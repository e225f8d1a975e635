"""What `make demo` and `make test` need besides the overlay: an environment, a checkpoint, a server to talk to.

Everything in this package but :mod:`demo.checkpoint` uses the standard library only, so it runs on the system's
Python before the environment exists.
"""
