"""`python -m llmux`, and the `llmux` command."""

from llmux.cli.main import main

if __name__ == "__main__":
    main()
