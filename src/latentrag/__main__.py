"""`python -m latentrag`, which is what `accelerate launch --module latentrag` runs."""

from latentrag.cli.main import run

if __name__ == "__main__":
    run()
