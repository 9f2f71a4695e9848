"""`python main.py selfcheck|check|fit|validate|test|predict|export|record ...`; `--help` after any of them."""

from lightning_action.cli import main

if __name__ == "__main__":
    main()
