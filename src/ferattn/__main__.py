"""``python -m ferattn`` is the ``ferattn`` command."""

from ferattn.cli import main

if __name__ == "__main__":
    main()
