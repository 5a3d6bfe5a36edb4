"""What a person looks at: the report of a campaign, in one file that needs no network."""

from sciopt.view.report import render_report, write_report

__all__ = ["render_report", "write_report"]
