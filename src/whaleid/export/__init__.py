"""The answers of a submission for those who work on: a spreadsheet, Wildbook, Camtrap DP."""
