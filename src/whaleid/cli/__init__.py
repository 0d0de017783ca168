"""The command line: one file for each group of commands, and one declaration of the options that they share."""
