"""Print which VLLM_* variables each release knows, read from its vllm/envs.py; for maintainers and the tests.

.venv/bin/python tests/entrypoint/dump_variables.py > src/sparkwright/entrypoint/data/variables.json
"""

import ast
import json
import tarfile
from collections.abc import Mapping

from sparkwright.pins import load_releases
from sparkwright.sources import fetch


def known_variables(source: str) -> set[str]:
    """The VLLM_* keys of the dictionary `environment_variables` in the text of vllm/envs.py."""
    for node in ast.parse(source).body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == "environment_variables"
            and isinstance(node.value, ast.Dict)
        ):
            keys = (key.value for key in node.value.keys if isinstance(key, ast.Constant))
            return {key for key in keys if isinstance(key, str) and key.startswith("VLLM_")}
    raise SystemExit("vllm/envs.py has no dictionary environment_variables")


def spans(releases: Mapping[str, set[str]]) -> dict[str, object]:
    """For each variable its spans: the first release that knows it, and the first that no longer does or null."""
    variables: dict[str, list[list[str | None]]] = {}
    for name in sorted(set().union(*releases.values())):
        found = variables[name] = []
        known = False
        for release, names in releases.items():
            if (name in names) != known:
                known = not known
                if known:
                    found.append([release, None])
                else:
                    found[-1][1] = release
    return {"releases": list(releases), "variables": variables}


def main() -> None:
    """Read every release of pins/releases.toml."""
    releases: dict[str, set[str]] = {}
    components = [component for component in load_releases().components if component.name == "vllm"]
    for component in sorted(components, key=lambda each: [int(part) for part in each.version.split(".")]):
        with tarfile.open(fetch(component.file("sdist"))) as archive:
            member = archive.extractfile(f"vllm-{component.version}/vllm/envs.py")
            assert member is not None
            releases[component.version] = known_variables(member.read().decode())
    table = spans(releases)
    variables = table["variables"]
    assert isinstance(variables, dict)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(span)}" for name, span in variables.items())
    print(f'{{"releases": {json.dumps(table["releases"])}, "variables": {{\n{lines}\n}}}}')


if __name__ == "__main__":
    main()
