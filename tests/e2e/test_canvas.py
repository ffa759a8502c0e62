"""The canvas opens with the pack's script in it and without an error of ours."""

from support.prompts import generation_prompt


def test_the_pack_is_on_the_canvas(canvas):
    known = canvas.page.evaluate("() => Object.keys(window.LiteGraph.registered_node_types).filter(name => name.startsWith('Pistachio'))")
    assert "PistachioTrainLora" in known
    assert any("/extensions/pistachio/" in address for address in canvas.requested)
    assert canvas.our_errors() == []


def test_a_graph_goes_through_the_canvas_to_the_server_unchanged(canvas, server):
    prompt = generation_prompt("sd15", text="a portrait of a woman")
    canvas.page.evaluate("prompt => window.app.loadApiJson(prompt, 'tiny')", prompt)
    assert not [node for node in canvas.nodes() if node["missing"]]
    sent = canvas.prompt()
    assert {node["class_type"] for node in sent.values()} == {node["class_type"] for node in prompt.values()}
    result = server.run_ok(sent)
    assert any("images" in output for output in result.outputs.values())
