"""`bench`: vLLM's own load generator, against the server that the same variables describe."""

from collections.abc import Mapping, Sequence

from sparkwright.entrypoint.plan import Host, Plan
from sparkwright.entrypoint.server import reachable
from sparkwright.entrypoint.variables import Values


def plan(values: Values, words: Sequence[str], _: Host, secrets: Mapping[str, str]) -> Plan:
    """Plan `vllm bench serve`; it reads the key under another name, and asks for the models' names without it."""
    key = values.environment.get("VLLM_API_KEY") or secrets.get("VLLM_API_KEY")
    named = {"OPENAI_API_KEY": key} if key and not values.environment.get("OPENAI_API_KEY") else {}
    server = ("--host", reachable(values.text("HOST")), "--port", str(values.number("PORT")))
    model = ("--model", values.text("MODEL")) if values.given("MODEL") else ()
    return Plan(argv=("vllm", "bench", "serve", *server, *model, *words), secrets={**secrets, **named})
