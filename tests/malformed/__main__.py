"""Try many malformed inputs, and print every distinct message once: scripts/malformed."""

import argparse
import collections
import re
import secrets
import time
import warnings

import malformed


def main() -> int:
    """Print faults and messages; 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="scripts/malformed", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=20_000, help="cases in all")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--only", choices=malformed.modules(), help="cases of this module only")
    args = parser.parse_args()
    warnings.simplefilter("error")
    modules = malformed.modules()
    names = [args.only] if args.only else [*modules]
    num_faults = 0
    for name in names:
        number, began = -(-args.number // len(names)), time.monotonic()
        messages: collections.Counter[str] = collections.Counter()
        shown: dict[str, str] = {}
        num_refused = num_wrong = 0
        for i, (case, outcome) in enumerate(malformed.trials(modules[name], args.seed, number)):
            if outcome.fault:
                num_wrong += 1
                print(f"FAULT {name} {i} [{case.name}]: {outcome.fault}")
            if outcome.message:
                num_refused += 1
                kind = re.sub(r"'[^']*'|\"[^\"]*\"|\d[\d.,e+-]*", "*", outcome.message)
                messages[kind] += 1
                shown.setdefault(kind, f"{outcome.message}\n    [{case.name}]")
        print(f"== {name}: what was said, once each")
        for kind, count in messages.most_common():
            print(f"{count:6} x {shown[kind]}")
        print(
            f"== {name}: {number} cases with --seed {args.seed}, {num_refused} refused, "
            f"{num_wrong} faults, {time.monotonic() - began:.0f} s"
        )
        num_faults += num_wrong
    return num_faults > 0


if __name__ == "__main__":
    raise SystemExit(main())
