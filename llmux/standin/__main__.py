"""`python -m llmux.standin`."""

from llmux.standin.server import main

if __name__ == "__main__":
    main()
