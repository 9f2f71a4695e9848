"""`python -m lightning_action fit|validate|test|predict|check|export ...`."""

from lightning_action.cli import main

if __name__ == "__main__":
    main()
