"""The array API standard: the public suite on every engine (`python -m tests.array_api CHECKOUT`), and tests of our own that need no suite."""
