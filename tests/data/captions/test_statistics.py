from __future__ import annotations

from lora_studio.data.captioners import WriterOptions, caption_writer
from lora_studio.data.captioners.write import write_captions
from lora_studio.data.captions.statistics import Count, caption_statistics
from lora_studio.data.scan import scan
from lora_studio.families.loading import load_tokenizers


def test_words_tags_and_identical_captions_are_counted_by_caption(folder, paint):
    captions = ["a red Fox, red eyes, solo", "the red fox's den, solo", "solo", "solo"]
    for number, caption in enumerate(captions):
        paint(f"{number}.png", width=40 + number, caption=caption)
    statistics = caption_statistics(scan(folder).used)
    assert (statistics.images, statistics.captioned) == (4, 4)
    assert statistics.words[:2] == (Count("solo", 4), Count("red", 2))
    assert {count.what for count in statistics.words} == {"solo", "red", "fox", "fox's", "eyes", "den"}
    assert statistics.tags == (Count("solo", 4),)
    assert statistics.identical == (Count("solo", 2),)


def test_what_is_missing_is_named(folder, paint):
    paint("a.png", caption="a zwx ball")
    paint("b.png", colour="blue", caption="a ball")
    paint("c.png", colour="green")
    paint("d.png", colour="white")
    (folder / "d.txt").write_bytes(b"caf\xe9")
    statistics = caption_statistics(scan(folder).used, trigger="zwx")
    assert statistics.without == ("c.png",)
    assert statistics.without_trigger == ("b.png",)
    assert statistics.unreadable == (("d.txt", "neither UTF-8 nor UTF-16 with its mark"),)
    assert caption_statistics(scan(folder).used).without_trigger is None


def test_who_wrote_the_captions_is_told(folder, paint):
    paint("red ball.png")
    paint("b.png", colour="blue", caption="mine")
    write_captions(scan(folder), caption_writer("filename")(WriterOptions()), folder=folder)
    assert caption_statistics(scan(folder).used).written_by == {"filename": 1, "by hand": 1}


def test_token_lengths_are_those_of_the_base_and_the_cut_part_is_shown(folder, paint, tiny_base):
    tokenizers = load_tokenizers(str(tiny_base))
    (tokenizer,) = tokenizers.values()
    room = tokenizer.model_max_length - 2  # begin and end
    long = " ".join(["ball"] * room + ["moon", "star"])
    paint("a.png", caption="ball")
    paint("b.png", colour="blue", caption=" ".join(["ball"] * room))
    paint("c.png", colour="green", caption=long)
    assert len(tokenizer(long).input_ids) == room + 4, "one token a word"
    (lengths,) = caption_statistics(scan(folder).used, tokenizers=tokenizers).lengths
    assert (lengths.shortest, lengths.middle, lengths.longest) == (3, room + 2, room + 4)
    ((name, lost),) = [(cut.name, cut.lost) for cut in lengths.cut]
    assert (name, lost) == ("c.png", "moon star")


def test_a_folder_without_captions_has_statistics_too(folder, paint):
    paint("a.png")
    statistics = caption_statistics(scan(folder).used, trigger="zwx")
    assert (statistics.captioned, statistics.words, statistics.without) == (0, (), ("a.png",))


def test_each_line_is_a_caption_of_its_own(folder, paint, tiny_base):
    paint("a.png", caption="a zwx ball\na ball")
    paint("b.png", colour="blue", caption="a zwx moon")
    tokenizers = load_tokenizers(str(tiny_base))
    statistics = caption_statistics(scan(folder).used, trigger="zwx", tokenizers=tokenizers)
    assert (statistics.captioned, statistics.several_lines) == (2, 1)
    assert statistics.without_trigger == ("a.png",)
    (lengths,) = statistics.lengths
    assert lengths.shortest == len(tokenizers["tokenizer"]("a ball").input_ids)
    assert lengths.longest == len(tokenizers["tokenizer"]("a zwx ball").input_ids)
