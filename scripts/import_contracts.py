"""A contract for import-linter that lists what a module may import, not what it may not.

A list of what is forbidden goes stale whenever a package is added; this one does not. Only imports
within the linter's root packages are judged, and modules that do not exist yet are passed over.
"""

from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


class OnlyContract(Contract):
    """Each of `modules`, with what is below it, imports nothing but `may_import` and itself."""

    type_name = "only"

    # import-linter puts the parsed set of names in the place of each field.
    modules: Any = fields.SetField(subfield=fields.StringField())
    may_import: Any = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        offending = []
        for importer in sorted(graph.modules):
            owner = {module for module in self.modules if within(importer, {module})}
            if not owner:
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                if not within(imported, owner | self.may_import):
                    offending += graph.get_import_details(importer=importer, imported=imported)
        return ContractCheck(kept=not offending, metadata={"offending": offending})

    def render_broken_contract(self, check: ContractCheck) -> None:
        allowed = ", ".join(sorted(self.may_import))
        for place in check.metadata["offending"]:
            output.print_error(
                f"{place['importer']} imports {place['imported']} (l.{place['line_number']}); "
                f"it may import only {allowed}",
                bold=True,
            )
        output.new_line()
