"""``python -m fairpriv``, which does the same as the console script."""

from fairpriv.cli import main

main()
