from __future__ import annotations

from experiments import style_questions, subject_questions

from lora_studio.pocket.samples import STYLE_TRIGGER, SUBJECT_TRIGGER, style_samples, subject_samples


def test_no_style_question_has_a_training_image():
    trained = {sample.caption for sample in style_samples()}
    questions = style_questions(200, seed=0)
    assert len(questions) == 200
    assert trained.isdisjoint(q.with_trigger for q in questions)
    assert all(STYLE_TRIGGER in q.with_trigger and STYLE_TRIGGER not in q.without_trigger for q in questions)


def test_no_subject_question_has_a_training_image():
    trained = {sample.caption for sample in subject_samples()}
    questions = subject_questions(200, seed=0)
    assert len(questions) == 200
    assert trained.isdisjoint(q.with_trigger for q in questions)
    assert all(SUBJECT_TRIGGER in q.with_trigger and "vkq" not in q.without_trigger for q in questions)


def test_every_question_has_its_own_noise():
    seeds = [q.seed for q in style_questions(50, seed=1)] + [q.seed for q in subject_questions(50, seed=2)]
    assert len(set(seeds)) == 100
