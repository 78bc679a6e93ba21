"""``python -m fairpriv``: the same as the console script."""

from fairpriv.cli import main

main()
