"""`recipe: auto`: looks at data and machine, measures, and writes the recipe that fits the minutes as a YAML."""
