"""`python -m lightning_action selfcheck|check|fit|validate|test|predict|export|record ...`."""

from lightning_action.cli import main

if __name__ == "__main__":
    main()
