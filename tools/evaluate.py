"""`adatad evaluate`, as a script."""

from adatad.cli.main import start

if __name__ == "__main__":
    start("evaluate")
