"""``timestore installation``: whose the places are, and what they are to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from timestore_pipeline.cli.exit_codes import ExitCode, exit_code_of, worst
from timestore_pipeline.cli.output import Heading, print_json, print_table, say, warn
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.operating.installation import adopt, change_identity
from timestore_pipeline.operating.observed_places import observe_places, problems_in_words
from timestore_pipeline.store import Store

_HEADINGS = (Heading("place"), Heading("where"), Heading("state"))


def show(store: Store, *, as_json: bool) -> ExitCode:
    """Print the identity and the places; what cannot be used is said on stderr and fails the command."""
    places = observe_places(store)
    if as_json:
        print_json({"identity": store.ledger.identity, "places": [asdict(each) for each in places]})
    else:
        say(f"installation {store.ledger.identity}, ledger {store.ledger.location}")
        print_table(_HEADINGS, [[each.name, each.location, each.state] for each in places])
        for problem in problems_in_words(places):
            warn(problem)
    return ExitCode.FAILED if any(each.problem for each in places) else ExitCode.DONE


def question(store: Store, names: Sequence[str]) -> str:
    """Return what to ask before places are taken."""
    found = {each.name: each for each in observe_places(store)}
    lines = [
        f"{name}: {each.location} {each.problem or 'is ' + each.state}"
        for name in names
        if (each := found.get(name)) is not None
    ]
    return "\n".join([*lines, f"Take {', '.join(names)} for the installation {store.ledger.identity}?"])


def adopt_all(store: Store, names: Sequence[str]) -> ExitCode:
    """Take each place; what fails is said on stderr, the others are taken."""
    codes = []
    for name in names:
        try:
            say(adopt(store, name))
            codes.append(ExitCode.DONE)
        except TimestoreError as error:
            warn(str(error))
            codes.append(exit_code_of(error))
    return worst(codes)


def question_of_change(store: Store) -> str:
    """Return what to ask before an installation gets another identity."""
    lines = [f"{each.name}: {each.location}" for each in observe_places(store)]
    return "\n".join([*lines, "These become the places of an installation of its own. Are they all of the copy?"])


def change(store: Store, *, in_place: bool, as_json: bool) -> ExitCode:
    """Give the copy an identity of its own."""
    changed = change_identity(store, in_place=in_place)
    if as_json:
        print_json(asdict(changed))
    else:
        say(f"the installation is {changed.identity} now, and was {changed.before}; so say {', '.join(changed.marked)}")
    return ExitCode.DONE
