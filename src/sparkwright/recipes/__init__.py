"""Recipes: tested sets of options for one model, as data; and foreign recipe files that can be read."""

from sparkwright.recipes.load import Resolved, find, names, resolve

__all__ = ["Resolved", "find", "names", "resolve"]
