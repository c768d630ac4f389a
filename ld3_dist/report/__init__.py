"""Tables, figures and one self-contained page, from the result tables of a sweep alone.

write_report(results, output=None, figures=None) -> ReportPaths    index.html, summary.md, figures
read_sweep_tables(results)         -> SweepTables    tables and experiment of a sweep's folder
summary_table(frame, evaluations)  -> DataFrame      one row per cell
summary_markdown(frame)            -> str            the same as Markdown

The columns of the summary are in `columns`, the figures in `figures`.
"""

from .headline import headline
from .markdown import readme_markdown, summary_markdown
from .summary import summary_table
from .tables import SweepTables, read_sweep_tables
from .write import ReportPaths, write_report

__all__ = [
    "ReportPaths",
    "SweepTables",
    "headline",
    "read_sweep_tables",
    "readme_markdown",
    "summary_markdown",
    "summary_table",
    "write_report",
]
