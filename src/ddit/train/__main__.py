"""`python -m ddit.train RECIPE --root DIR [--world PRESET] [--set KEY=VALUE ...] [--dry-run]`."""

import argparse

from ddit.train.run import run_recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ddit.train", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--root", default="runs/mini", help="folder of all stages (default: runs/mini)")
    parser.add_argument("--world", default="fixed", help="preset of the small world (default: fixed)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and stop")
    options = parser.parse_args()
    run_recipe(
        options.recipe,
        options.root,
        world=options.world,
        overrides=options.overrides,
        dry_run=options.dry_run,
    )


if __name__ == "__main__":
    main()
