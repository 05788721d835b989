"""Reports of runs: metrics with intervals, calibration, segments, importance, attention, data and cost, on one page."""

from keras_ranking.reports.report import ReportOptions, RunReport, report_of

__all__ = ["ReportOptions", "RunReport", "report_of"]
