"""The way in: requests to `{port}-{id}.{domain}` go to that port of that sandbox, and nowhere else."""
