"""`adatad dev model-zoo`, as a script."""

from adatad.cli.main import start

if __name__ == "__main__":
    start("dev model-zoo")
