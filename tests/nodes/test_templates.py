"""The pack's workflows in the host's template browser: in the order of their names, whatever the disk's order is."""


def test_only_our_own_list_is_put_in_order(host):
    from pistachio.bridge.templates import name_of_pack, sort_templates, sorted_answer
    from server import PromptServer

    given = {"other": ["b", "a"], "pistachio": ["02 b", "01 a"]}
    assert sorted_answer(given, "pistachio") == {"other": ["b", "a"], "pistachio": ["01 a", "02 b"]} and given["pistachio"] == ["02 b", "01 a"]
    assert sorted_answer({"other": ["b", "a"]}, "pistachio") == {"other": ["b", "a"]}
    assert name_of_pack()
    app = PromptServer.instance.app
    sort_templates()
    count = len(app.middlewares)
    sort_templates()
    assert len(app.middlewares) == count
