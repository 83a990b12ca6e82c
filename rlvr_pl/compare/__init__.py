"""Comparing objectives: arms × seeds under one budget, and the report on them."""
