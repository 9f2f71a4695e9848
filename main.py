"""`python main.py fit|validate|test|predict --config configs/...`; `--help` after any of them."""

from lightning_action.cli import main

if __name__ == "__main__":
    main()
