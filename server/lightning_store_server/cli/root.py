"""The command group: what ``lightning-store-grpc`` can do."""

from __future__ import annotations

import click

from lightning_store_server.cli import PROGRAM, change, database, delete, serve, show, token, transfer, watch


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM, message="%(prog)s %(version)s")
def root() -> None:
    """Serve a LightningStore over gRPC, look into one that is being served, and look after its file.

    Every flag can be given as the environment variable that its help names; the flag wins.
    """


for command in (
    serve.serve,
    show.health,
    show.stats,
    show.rollouts,
    show.rollout,
    show.groups,
    show.workers,
    show.resources,
    watch.watch,
    change.enqueue,
    change.cancel,
    change.requeue,
    change.admission,
    delete.delete,
    delete.delete_workers,
    delete.delete_resources,
    database.backup,
    database.restore,
    database.check,
    database.vacuum,
    database.migrate,
    transfer.export,
    transfer.import_,
    token.token,
):
    root.add_command(command)
