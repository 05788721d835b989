"""Scores of rows by the serving graph: rows without labels, and logged rows as serving would have scored them."""
