"""`python -m llmux.standin`."""

from llmux.standin.cli import main

if __name__ == "__main__":
    main()
