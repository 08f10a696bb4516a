"""`python -m zarrbuf.cli`, where the command is not installed."""

from __future__ import annotations

from zarrbuf.cli.main import main

if __name__ == "__main__":
    main()
