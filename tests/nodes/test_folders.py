"""Which folder a name on the canvas stands for, where dropped files may go, and what is kept of the thumbnails."""

import pytest

from pistachio.training.errors import PistachioError


@pytest.fixture
def extra_root(host, tmp_path):
    import folder_paths

    folder_paths.add_model_folder_path("pistachio", str(tmp_path / "characters"))
    yield tmp_path / "characters"
    del folder_paths.folder_names_and_paths["pistachio"]


def test_files_go_into_the_folder_that_is_read_or_nowhere(host, extra_root):
    from pistachio.bridge.folders import picture_folder, upload_folder

    (extra_root / "mia_extra").mkdir(parents=True)
    (host.input / "input" / "mia_twice").mkdir(parents=True)
    for name, there in (("mia_extra", extra_root / "mia_extra"), ("input/mia_twice", host.input / "input" / "mia_twice")):
        assert picture_folder(name) == there.resolve()
    with pytest.raises(PistachioError, match="'mia_extra' is none"):
        upload_folder("mia_extra")
    assert upload_folder("input/mia_twice") == picture_folder("input/mia_twice")
    assert upload_folder("mia_new") == host.input.resolve() / "mia_new"
    (host.input / "mia_extra").mkdir()
    assert upload_folder("mia_extra") == picture_folder("mia_extra") == host.input.resolve() / "mia_extra"


def test_thumbnails_are_kept_up_to_a_number_of_bytes(host):
    from pistachio.bridge.kept_bytes import KeptBytes

    made = []

    def ask(kept, key, size_bytes):
        kept.get(key, lambda: made.append(key) or bytes(size_bytes))

    kept = KeptBytes(100)
    for key, size_bytes in (("a", 40), ("b", 40), ("a", 40), ("c", 40), ("a", 40), ("b", 40), ("large", 500), ("a", 40), ("a", 40)):
        ask(kept, key, size_bytes)
        assert kept.size_bytes <= 100
    assert made == ["a", "b", "c", "b", "large", "a"] and kept.size_bytes == 40
