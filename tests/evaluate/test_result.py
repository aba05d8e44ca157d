"""An evaluation is the same behind its file, which strict readers of JSON can read."""

from __future__ import annotations

import json
import math

from lora_studio.evaluate.result import (
    Evaluation,
    Interval,
    Measured,
    Near,
    Question,
    Variant,
    Verdict,
    evaluation_of,
)

UNKNOWN = math.nan


def test_what_could_not_be_measured_is_null_and_read_again() -> None:
    measure = Measured("drift", Interval(0.5, UNKNOWN, UNKNOWN, 1), {0: 0.5, 3: UNKNOWN}, tuned=UNKNOWN)
    given = Evaluation(
        name="mine",
        variant=Variant(40, 0.8),
        facts={"base": "pocket"},
        questions=(Question("unrelated", "a dog, zwx", "a dog"),),
        seeds=(1, 2),
        measures=(measure,),
        verdicts=(Verdict("leaks", "leakage", "it does", False, 7),),
        nearest=(Near(0, 1, "one.png", 0.9, True),),
        notes=("a note",),
    )
    text = json.dumps(given.to_json(), allow_nan=False)
    told = json.loads(text)["measures"][0]
    assert told["interval"] == {"value": 0.5, "low": None, "high": None, "questions": 1}
    assert told["per_question"] == {"0": 0.5, "3": None} and told["base"] is None and told["tuned"] is None
    read = evaluation_of(json.loads(text))
    assert read.to_json() == given.to_json()
    assert math.isnan(read.measures[0].per_question[3]) and read.measures[0].interval.questions == 1
    assert (read.questions, read.verdicts, read.nearest) == (given.questions, given.verdicts, given.nearest)
