"""What the container does when it starts: plan a command from variables and arguments, then become it.

Nothing here may import typer, rich, pydantic or yaml on the way to `serve`: the time from start to `vllm` counts.
Recipes, which need them, are imported only when RECIPE is set.
"""
