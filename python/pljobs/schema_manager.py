"""The schema, by an app: what procrastinate's users call where others run `pljobs migrate`."""

from __future__ import annotations

from pljobs.connector import PsycopgConnector
from pljobs.install import migrate
from pljobs.install_files import one_file
from pljobs.threads import in_a_thread


class SchemaManager:
    """Install or upgrade the schema over an app's connector; get it as `app.schema_manager`.

    Follows procrastinate's class of the same name; but what it applies upgrades, too, and may be applied
    again.
    """

    def __init__(self, connector: PsycopgConnector) -> None:
        self._connector = connector

    @staticmethod
    def get_schema() -> str:
        """Return all of the schema as one text, as `pljobs schema --sql` prints it."""
        return one_file()

    def apply_schema(self) -> None:
        """Do what `pljobs migrate` does; raises what `pljobs.install.migrate` does."""
        with self._connector.checked_out() as conn:
            migrate(conn)

    async def apply_schema_async(self) -> None:
        """Do the same, beside the event loop."""
        await in_a_thread(self.apply_schema)
