"""``timestore installation``: whose the places are, and what they are to be."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from timestore_pipeline.cli.exit_codes import ExitCode, exit_code_of, worst
from timestore_pipeline.cli.options import AsJson, go_on_if, open_store
from timestore_pipeline.cli.output import Heading, print_json, print_table, say, warn
from timestore_pipeline.errors import TimestoreError

_HEADINGS = (Heading("place"), Heading("where"), Heading("state"))

installation_app = typer.Typer(
    help="Whose the places of files are, and what they are to be.", no_args_is_help=True, rich_markup_mode=None
)


@installation_app.command("show", short_help="Show where files are kept, and whose that is.")
def show_installation(as_json: AsJson = False) -> None:
    """Show the identity of this installation and its places: which are its own, and which are not there.

    Exit code 1 where one is missing or belongs to another installation.
    """
    from timestore_pipeline.operating.observed_places import observe_places, problems_in_words

    with open_store() as store:
        places = observe_places(store)
        identity, ledger = store.ledger.identity, store.ledger.location
    if as_json:
        print_json({"identity": identity, "places": [asdict(each) for each in places]})
    else:
        say(f"installation {identity}, ledger {ledger}")
        print_table(_HEADINGS, [[each.name, each.location, each.state] for each in places])
        for problem in problems_in_words(places):
            warn(problem)
    raise typer.Exit(ExitCode.FAILED if any(each.problem for each in places) else ExitCode.DONE)


@installation_app.command("adopt", short_help="Take a place for this installation's, on purpose.")
def adopt_places(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="PLACE",
            help="`staging`, `tables`, `archive`, `work`, `tables/DATASET`: its table, `staging/DATASET`: segments.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take what is at a place for this installation's from now on: where the old one is gone for good, or is another's.

    `tables/DATASET` gives up a table that is gone: what segments still have of its rows is published again, the others
    are lost. `staging/DATASET` takes its folder of segments as it is: those that are gone go to quarantine. Nothing is
    removed. What another installation had is refused to it from then on.
    """
    from timestore_pipeline.operating.installation import adopt
    from timestore_pipeline.operating.observed_places import observe_places

    codes = []
    with open_store() as store:
        if not yes:
            there = {each.name: each for each in observe_places(store)}
            found = [there[name] for name in names if name in there]
            lines = [f"{each.name}: {each.location} {each.problem or 'is ' + each.state}" for each in found]
            go_on_if("\n".join([*lines, f"Take {', '.join(names)} for the installation {store.ledger.identity}?"]))
        for name in dict.fromkeys(names):
            try:
                say(adopt(store, name))
            except TimestoreError as error:
                warn(str(error))
                codes.append(exit_code_of(error))
    raise typer.Exit(worst(codes))


@installation_app.command("new-identity", short_help="Make a copy an installation of its own.")
def new_identity(
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Also where the original has a place at the same name: on another host, say."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a copied installation an identity of its own, in its ledger and in its staging, tables and archive.

    Stop whatever uses the copy before. The original stays as it is; its places must not be those of the copy.
    """
    from timestore_pipeline.operating.installation import change_identity
    from timestore_pipeline.operating.observed_places import observe_places

    with open_store() as store:
        if not yes:
            lines = [f"{each.name}: {each.location}" for each in observe_places(store)]
            lines.append("These become the places of an installation of its own. Are they all of the copy?")
            go_on_if("\n".join(lines))
        changed = change_identity(store, in_place=in_place)
    if as_json:
        print_json(asdict(changed))
    else:
        say(f"the installation is {changed.identity} now, and was {changed.before}; so say {', '.join(changed.marked)}")
