"""Captions rewritten by rules, and the way back, on the canvas."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.progress import NodeProgress, check_interrupted
from ..dataset.caption_history import CaptionHistory, history_words
from ..dataset.caption_lock import writing_captions
from ..dataset.caption_rewrite import counts_json, preview_words, reread_captions, rewrite_captions, table_words
from ..dataset.caption_rules import TRIGGER_PLACES, CaptionRules, read_replacements
from ..dataset.folder import name_list, plural
from ..dataset.leak_words import DEFAULT_LEAK_LIST, read_leak_list
from .schema import ADVANCED, Dataset, default, problem, schema
from .shown import shown


class CaptionRulesNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCaptionRules",
            display_name="Caption Rules",
            category="Pistachio/caption",
            description="Rewrites captions: the trigger word, descriptions that belong to it instead of the caption, replacing, tags. Shows what would change and writes only when told to.",
            search_aliases=["caption", "joycaption", "kohya", "caption editor", "trigger word", "tag cleanup", "prune tags", "replace in captions", "tag frequency"],
            is_output_node=True,
            inputs=[
                Dataset.Input("dataset", tooltip="From Caption Dataset or Load Image Folder."),
                io.String.Input("trigger_word", default="", optional=True, placeholder="e.g. ohwx", tooltip="A rare word that stands for the character. Empty: the one given on a node before, if any."),
                io.Combo.Input(
                    "trigger_place", options=list(TRIGGER_PLACES), default=default(CaptionRules, "trigger_place"), optional=True,
                    tooltip="Before the caption: 'ohwx, a woman in a park'. In place of the person: 'ohwx in a park'; where no person is named it goes first. A caption that has the trigger keeps it where it is.",
                ),
                io.String.Input("class_noun", default="", optional=True, placeholder="e.g. woman", tooltip="What the character is, written after the trigger word: 'ohwx woman'. It keeps sentences whole where captions without the trigger are trained."),
                io.Boolean.Input("filter_leaks", default=True, optional=True, tooltip="Take out what the trigger word should learn: hair, eyes, skin, face, as the list below says. The preview shows each phrase that goes."),
                io.String.Input(
                    "leak_list", default=DEFAULT_LEAK_LIST, optional=True, multiline=True,
                    tooltip="remove: nouns, with all that describes them. adjectives: only before a person; * stands for any letters. keep: phrases that stay although they hold such a word. English.", **ADVANCED,
                ),
                io.String.Input(
                    "replacements", default="", optional=True, multiline=True, placeholder="photograph => photo\n\\bred\\b => crimson",
                    tooltip="One a line: a regular expression, =>, and what replaces it; nothing after the arrow deletes. Done first, from top to bottom.",
                ),
                io.String.Input("prepend", default="", optional=True, tooltip="Fixed words before every caption, after a trigger word that leads it. Not added twice."),
                io.String.Input("append", default="", optional=True, tooltip="Fixed words after every caption. Not added twice."),
                io.Boolean.Input("dedupe_tags", default=True, optional=True, tooltip="In tag lists, keep the first of equal tags. Sentences are left alone."),
                io.Boolean.Input("write", default=False, optional=True, tooltip="Off: a preview; the dataset that goes on has the new captions, the files don't. On: the .txt files are written too, and Caption History can go back."),
                io.Boolean.Input("captions_json", default=False, optional=True, tooltip="When writing, also write captions.json into each folder, the table of captions that diffusion-pipe reads.", **ADVANCED),
                io.Boolean.Input("overwrite_edited", default=False, optional=True, tooltip="Also rewrite captions that a person has edited since Pistachio wrote them. Off: they are kept as they are.", **ADVANCED),
            ],
            outputs=[
                Dataset.Output("ruled", display_name="dataset", tooltip="The pictures with the new captions."),
                io.String.Output("preview", display_name="preview", tooltip="Each caption that changes, before and after, and what was taken out."),
                io.String.Output("counts", display_name="counts", tooltip="JSON: in how many captions each tag is, or each word where captions are sentences."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, leak_list=None, replacements=None):
        told = [answer for answer in (problem(read_leak_list, leak_list), problem(read_replacements, replacements)) if answer is not True]
        return told[0] if told else True

    @classmethod
    def execute(
        cls, dataset, trigger_word="", trigger_place=TRIGGER_PLACES[0], class_noun="", filter_leaks=True, leak_list=DEFAULT_LEAK_LIST,
        replacements="", prepend="", append="", dedupe_tags=True, write=False, captions_json=False, overwrite_edited=False,
    ) -> io.NodeOutput:
        rules = CaptionRules(
            trigger_word=trigger_word.strip(), trigger_place=trigger_place, class_noun=class_noun.strip(), prepend=prepend, append=append,
            leaks=read_leak_list(leak_list) if filter_leaks else None, replacements=read_replacements(replacements), dedupe_tags=dedupe_tags,
        )
        result = rewrite_captions(
            dataset, rules, write=write, captions_json=captions_json, overwrite_edited=overwrite_edited,
            progress=NodeProgress(cls.hidden.unique_id, unit="captions"), check_interrupted=check_interrupted,
        )
        preview = preview_words(result)
        sentences = (*result.notes, "", preview, "", table_words(result))
        return io.NodeOutput(result.dataset, preview, counts_json(result), ui=shown(sentences=sentences))


class CaptionHistoryNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCaptionHistory",
            display_name="Caption History",
            category="Pistachio/caption",
            description="Lists what Pistachio wrote into the caption files of a dataset, and puts them back as they were before any of these changes.",
            search_aliases=["caption", "joycaption", "undo captions", "rollback captions", "restore captions"],
            is_output_node=True,
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Image Folder."),
                io.Int.Input("restore_before", default=0, optional=True, min=0, max=1_000_000, tooltip="Number of a change in the list: the captions are put back as they were before it. 0: nothing is changed. Going back is a change too and can be undone by its number."),
                io.Boolean.Input("overwrite_edited", default=False, optional=True, tooltip="Also put back captions that a person has edited since. Off: they are kept as they are.", **ADVANCED),
            ],
            outputs=[
                Dataset.Output("restored", display_name="dataset", tooltip="The pictures with the captions that are on the disk now."),
                io.String.Output("history", display_name="history", tooltip="One line a change: its number, when, by what, how many files."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, restore_before=0, overwrite_edited=False) -> io.NodeOutput:
        history = CaptionHistory(dataset.folder)
        notes = []
        if restore_before:
            with writing_captions(dataset.folder, by="Caption History"):
                written = history.restore_before(restore_before, overwrite_edited=overwrite_edited)
            notes.append(f"{plural(len(written.changed), 'file')} put back as before change {restore_before}." if written.changed else f"The captions are as they were before change {restore_before}.")
            if written.edited:
                notes.append(f"{plural(len(written.edited), 'file')} edited by hand since and kept: {name_list(list(written.edited))}. Switch 'overwrite_edited' on to put them back too.")
            dataset = reread_captions(dataset)
        lines = "\n".join(history_words(history)) or "No caption file was changed by Pistachio yet."
        return io.NodeOutput(dataset, lines, ui=shown(sentences=(*notes, lines)))
