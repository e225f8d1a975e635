"""`python -m overlay`: run any Python program under the overlay."""

from launcher import wrapper

if __name__ == "__main__":
    wrapper(prog_name="python -m overlay")
