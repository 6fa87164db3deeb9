"""`python -m adatad VERB`, and `torchrun -m adatad VERB`."""

from adatad.cli.main import start

if __name__ == "__main__":
    start()
