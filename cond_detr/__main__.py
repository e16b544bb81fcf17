"""``python -m cond_detr``: the same as the ``cond-detr`` script."""

from cond_detr.cli import main

if __name__ == "__main__":
    main()
