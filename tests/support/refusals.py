"""What a live server says of a prompt that must fail. Nothing may have been trained by it."""

from .server import Refused

RUN = "never_trained"


def failure(server, prompt: dict) -> str:
    """What the server says of a prompt that must fail, in `node_errors` or while it runs; nothing may have been trained."""
    listener = server.listen()
    try:
        answer = server.post("/prompt", {"prompt": prompt, "client_id": listener.client_id})
        result = server.finish(listener, answer["prompt_id"], timeout_seconds=400)
    except Refused as refused:
        assert refused.status == 400
        return node_errors(refused.body)
    finally:
        listener.close()
    if answer["node_errors"]:  # the host runs what does not depend on the bad node
        assert result.of_type("pistachio.step") == []
        return node_errors(answer)
    assert result.status == "execution_error", result.outputs
    assert result.of_type("pistachio.step") == []
    assert not (server.base / "models" / "loras" / f"{RUN}.safetensors").exists()
    return result.message["exception_message"]


def node_errors(answer: dict) -> str:
    errors = [error for node in answer["node_errors"].values() for error in node["errors"]]
    assert errors
    return " ".join(f"{error['message']} {error['details']}" for error in errors)


def assert_says(message: str, *parts: str) -> None:
    for part in parts:
        assert part.lower() in message.lower(), message
