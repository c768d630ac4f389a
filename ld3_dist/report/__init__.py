"""Tables, figures and one self-contained page, from the result tables of a sweep alone.

write_report(results, output=None) -> ReportPaths      index.html, summary.md, figures/*.png
summary_table(frame)               -> DataFrame        one row a cell
summary_markdown(frame)            -> str
read_sweep_tables(results)                -> SweepTables            tables, failures and experiment
                                          of a sweep folder"""

from .summary import summary_table
from .tables import SweepTables, read_sweep_tables
from .text import headline, summary_markdown
from .write import ReportPaths, write_report

__all__ = [
    "ReportPaths",
    "SweepTables",
    "headline",
    "read_sweep_tables",
    "summary_markdown",
    "summary_table",
    "write_report",
]
